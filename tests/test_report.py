"""The result table as people read it, and the json file."""

import json

from maskx_tf.evaluation import report

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl")


def section(start, **per_class):
    result = {
        subset: {m: start + 0.1 * i + 0.01 * j for j, m in enumerate(METRICS)}
        for i, subset in enumerate(("A", "B", "all"))
    }
    return {**result, "per_class": per_class} if per_class else result


def given_boxes(start, shared):
    result = section(start)
    for values in result.values():
        values |= {"IoU": 0.6, "shared": shared, "ceiling": 0.8}
        values |= dict.fromkeys(("IoU_shared", "ceiling_shared"), 0.5 if shared else None)
    return result


def test_format_table():
    results = {"box": section(0.3), "mask": section(0.123), "mask_given_boxes": given_boxes(0.7, 0)}
    results["mask"]["B"] = dict.fromkeys(METRICS)
    results["box"]["all"]["APs"] = None
    results["box"]["all"]["AP50"] = 1.0
    assert report.format_table(results) == (
        """\
                           AP   AP50   AP75    APs    APm    APl
box                A     30.0   31.0   32.0   33.0   34.0   35.0
                   B     40.0   41.0   42.0   43.0   44.0   45.0
                   all   50.0  100.0   52.0      –   54.0   55.0
mask               A     12.3   13.3   14.3   15.3   16.3   17.3
                   B        –      –      –      –      –      –
                   all   32.3   33.3   34.3   35.3   36.3   37.3
mask, boxes given  A     70.0   71.0   72.0   73.0   74.0   75.0
                   B     80.0   81.0   82.0   83.0   84.0   85.0
                   all   90.0   91.0   92.0   93.0   94.0   95.0
                           A      B    all
mean IoU, boxes given   60.0   60.0   60.0"""
    )


def test_format_table_shows_the_ceiling_where_boxes_are_shared():
    rows = {"box": section(0.3), "mask": section(0.1), "mask_given_boxes": given_boxes(0.7, 0.256)}
    lines = report.format_table(rows).splitlines()
    ceilings = [line for line in lines if "class-agnostic: at most" in line]
    assert [line.split()[-1] for line in ceilings] == ["80.0", "50.0"]
    assert sum("25.6" in line for line in lines) == 1


def test_format_table_says_what_is_shown():
    share = {"recall": 0.6, "precision": None}
    point = {"score": 0.5, "box_iou": 0.75, "all": share}
    line = report.format_table({"box": section(0.3), "operating_point": point}).splitlines()[-1]
    assert all(part in line for part in ("score 0.5", "60.0 %", f"{report.EMPTY} %", "0.75"))


def test_format_table_without_given_boxes_has_two_sections():
    text = report.format_table({"box": section(0.3), "mask": section(0.2)})
    assert "given" not in text and len(text.splitlines()) == 7


def test_format_table_per_class():
    results = {
        "box": section(0.3, cat=0.5, **{"potted plant": None}),
        "mask": section(0.3, cat=0.25, **{"potted plant": None}),
    }
    text = report.format_table(results, mask_classes={"cat"})
    assert text.split("\n\n")[1] == (
        """\
AP per class  set    box   mask
cat           A     50.0   25.0
potted plant  B        –      –"""
    )


def test_write_json(tmp_path):
    path = tmp_path / "new" / "evaluation.json"
    report.write_json({"box": {"A": {"AP": None}}, "name": "–"}, str(path))
    assert json.loads(path.read_text()) == {"box": {"A": {"AP": None}}, "name": "–"}
    assert [p.name for p in path.parent.iterdir()] == ["evaluation.json"]
