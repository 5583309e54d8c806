rule data:
    output:
        LAYOUT.data / "images.npy",
        LAYOUT.data / "labels.npy",
        LAYOUT.data / "splits.parquet",
        meta=LAYOUT.data / "meta.json",
    params:
        spec=STUDY.data.plain(),
    log:
        LOGS / "data.log",
    shell:
        "{KT} data --config {CONFIG} --log {log}"
