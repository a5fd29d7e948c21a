def write_report(config, data, *, folder, baseline_folder, result):
    return folder / "report.html"
