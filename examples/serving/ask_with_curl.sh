#!/usr/bin/env bash
# Asks TensorFlow Serving's REST interface about JPEG or PNG files; needs curl and base64.
#   bash ask_with_curl.sh http://localhost:8501 photograph.jpg [more.png ...]
# MODEL and SIGNATURE choose others than keypoint_rcnn and serving_default.
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: bash ask_with_curl.sh http://HOST:8501 IMAGE..." >&2; exit 2; }
server="$1"
shift
{
  printf '{"signature_name": "%s", "instances": [' "${SIGNATURE:-serving_default}"
  separator=""
  for image in "$@"; do
    printf '%s{"b64": "' "$separator"
    base64 < "$image" | tr -d '\n'
    printf '"}'
    separator=", "
  done
  printf ']}'
} | curl --silent --show-error --fail-with-body --data-binary @- "$server/v1/models/${MODEL:-keypoint_rcnn}:predict"
echo
