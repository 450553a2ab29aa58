#!/usr/bin/env bash
# Build pillow-simd and lay it over Pillow of the same 12.x line, both of which fill the folder `PIL`.
# torchvision depends on the distribution `pillow`, so that one stays installed. The wheel is built first and
# installed only if that worked: where it does not compile, stock Pillow goes on as it is. Codecs with an extension
# module of their own (WebP, AVIF) stay stock Pillow's where their headers are missing; TIFF's sits in the core.
# Usage: .ci/pillow_simd.sh VENV
set -euo pipefail
VERSION=12.1.1.post0
venv=$1

# The core refuses to load under a `PIL` of another version, so this says that both belong together.
installed=$("$venv/bin/python" -c 'from PIL import Image; print(Image.__version__)' 2>/dev/null || true)
if [ "$installed" != "$VERSION" ]; then
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels"' EXIT
    flags=
    if grep -qw avx2 /proc/cpuinfo 2>/dev/null; then flags=" -mavx2"; fi
    # No cache: a wheel with AVX2 must not reach another machine through a shared folder.
    if ! CC="${CC:-cc}$flags" "$venv/bin/pip" wheel --no-deps --no-cache-dir --no-binary pillow-simd \
            --wheel-dir "$wheels" "pillow-simd==$VERSION" >"$venv/pillow-simd.log" 2>&1; then
        echo "setup: pillow-simd could not be built (it needs a C compiler and the headers of libjpeg and zlib; see $venv/pillow-simd.log); going on with stock Pillow, which builds shards more slowly"
        exit 0
    fi
    "$venv/bin/pip" install --quiet --no-deps --force-reinstall "$wheels"/*.whl
fi

"$venv/bin/python" - <<'PY'
from PIL import Image, features

codecs = {"jpg": "JPEG", "zlib": "PNG", "webp": "WebP", "libtiff": "TIFF"}
without = [name for feature, name in codecs.items() if not features.check(feature)]
note = f"; without {', '.join(without)}, whose headers were missing when it was built" if without else ""
print(f"setup: pillow-simd {Image.__version__} over Pillow{note}")
PY
