rule data:
    input:
        STUDY.data.files,
        again(LAYOUT.data / "meta.json"),
    output:
        LAYOUT.data / "images.npy",
        [LAYOUT.data / name for name in truth_files(STUDY.task)],
        LAYOUT.data / "splits.parquet",
        meta=LAYOUT.data / "meta.json",
    log:
        LOGS / "data.log",
    conda:
        "../../envs/kt.yaml"
    threads: 8
    resources:
        mem_mb=3000,
    params:
        spec=STUDY.data.plain(),
    message:
        "decode and split the images"
    shell:
        "kt data --threads {threads} --log={log:q}"
