#!/usr/bin/env bash
# Build pillow-simd and lay it over Pillow of the same 12.x line, both of which fill the folder `PIL`.
# torchvision depends on the distribution `pillow`, so that one stays installed. The wheel is built first and
# installed only if that worked: where it does not compile, stock Pillow goes on as it is.
set -u
VERSION=12.1.1.post0
PIP=${PIP:-pip}
BINPYTHON=${BINPYTHON:-python}

wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT

flags=
if grep -qw avx2 /proc/cpuinfo 2>/dev/null; then flags=" -mavx2"; fi

if ! CC="${CC:-cc}$flags" "$PIP" wheel --quiet --no-deps --no-cache-dir --no-binary pillow-simd \
        --wheel-dir "$wheels" "pillow-simd==$VERSION" >"$wheels/log" 2>&1; then
    echo "setup: pillow-simd could not be compiled (a C compiler and libjpeg's and zlib's headers are needed); going on with stock Pillow, at about half the speed"
    exit 0
fi
"$PIP" install --quiet --no-deps --force-reinstall "$wheels"/*.whl
"$BINPYTHON" - <<'PY'
from PIL import Image, features
codecs = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP", "libtiff": "TIFF"}
without = [name for feature, name in codecs.items() if not features.check(feature)]
note = f"; without {', '.join(without)} (their headers were not there)" if without else ""
print(f"setup: pillow-simd {Image.__version__} over Pillow{note}")
PY
