"""Copies a folder into a bucket, as `aws s3 sync` does: `python -m tests.support.s3_copy FOLDER
BUCKET KEY`. The address and the keys come from the environment.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import boto3


def main(folder: Path, bucket: str, key: str) -> None:
    """Put each file of the folder below the key."""
    s3 = boto3.client("s3", endpoint_url=os.environ["AWS_ENDPOINT_URL"], region_name="us-east-1")
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        s3.upload_file(str(path), bucket, f"{key}/{path.relative_to(folder).as_posix()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
