"""Writing of record shards: COCO-format data sets and the embedded Shapes."""
