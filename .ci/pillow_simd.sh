#!/usr/bin/env bash
# Build pillow-simd and lay it over Pillow of the same 12.x line, both of which fill the folder `PIL`.
# torchvision depends on the distribution `pillow`, so that one stays installed. The wheel is built first and
# installed only if that worked: where it does not compile, stock Pillow goes on as it is. Codecs with an extension
# module of their own (WebP, AVIF) stay stock Pillow's where their headers are missing; TIFF's sits in the core, and is
# lost there. The last line says what was lost. Run again after the headers came, this builds again.
# Usage: .ci/pillow_simd.sh VENV
set -euo pipefail
VERSION=12.1.1.post0
venv=$1
installed=$("$venv/bin/python" -c 'from PIL import Image; print(Image.__version__)' 2>/dev/null || true)

has_headers() { # of the library that a format needs
    case $1 in
        TIFF) header=tiffio.h ;;
        WEBP) header=webp/demux.h ;;
        AVIF) header=avif/avif.h ;;
        *) return 1 ;;
    esac
    printf '#include <stdio.h>\n#include <%s>\n' "$header" | "${CC:-cc}" -E -x c - >/dev/null 2>&1
}

# Pillow's names of the formats that it was built without, then the packages that have their headers; a line each.
lost() {
    "$venv/bin/python" - <<'PY'
from lmk_data.formats import EXTENSIONS, accepted_formats, missing_library, needs_extra

names = [name for name in EXTENSIONS if name not in accepted_formats() and not needs_extra(name)]
print(" ".join(names) + "\n" + " ".join(missing_library(name)[1] for name in names))
PY
}

# The core refuses to load under a `PIL` of another version, so an equal version says that both belong together.
wanted=no
if [ "$installed" != "$VERSION" ]; then
    wanted=yes
else
    read -r formats < <(lost)
    for format in $formats; do
        if has_headers "$format"; then wanted=yes; fi
    done
fi
if [ $wanted = yes ]; then
    wheels=$(mktemp -d)
    trap 'rm -rf "$wheels"' EXIT
    flags=
    if grep -qw avx2 /proc/cpuinfo 2>/dev/null; then flags=" -mavx2"; fi
    # No cache: a wheel with AVX2 must not reach another machine through a shared folder.
    if ! CC="${CC:-cc}$flags" "$venv/bin/pip" wheel --no-deps --no-cache-dir --no-binary pillow-simd \
            --wheel-dir "$wheels" "pillow-simd==$VERSION" >"$venv/pillow-simd.log" 2>&1; then
        echo "setup: pillow-simd could not be built (it needs a C compiler and the headers of Python, libjpeg and zlib; see $venv/pillow-simd.log); going on with stock Pillow, which builds shards more slowly"
        exit 0
    fi
    "$venv/bin/pip" install --quiet --no-deps --force-reinstall "$wheels"/*.whl
fi

echo "setup: pillow-simd $VERSION over Pillow"
{ read -r formats; read -r packages; } < <(lost)
if [ -n "$formats" ]; then
    echo "setup: pictures of these formats are not read: ${formats// /, }; install ${packages} and run \`make setup\` again"
fi
