"""Tables of contents outside of their layers: one image for all of them, found by the converted image's name.

Source: stargz-snapshotter docs/external-toc.md: `<reference>-esgztoc`, a layer annotation names the layer described.
"""

import gzip
import hashlib
import io
from collections.abc import Sequence

import trio

from snapshotter.errors import ConfigError
from snapshotter.image import documents
from snapshotter.image.convert.layers import ConvertedLayer
from snapshotter.image.places.ends import Target
from snapshotter.layer.opening import DATA_LAYER, EXTERNAL_SUFFIX
from snapshotter.registry.manifest import LAYERS_MAX, OCI_MANIFEST, Descriptor


async def store_tocs(layers: Sequence[ConvertedLayer], target: Target) -> Descriptor | None:
    """Store the external tables of contents of all layers at the target; the manifest of their image, None if there are none.

    Raises:
        ConfigError: more than one image can name.
    """
    tocs = {layer.descriptor.digest: layer.written.external_toc for layer in layers if layer.written is not None}
    rows: list[Descriptor] = []
    diff_ids: list[str] = []
    for layer_digest, toc in tocs.items():
        if toc is None:
            continue
        row = documents.described(toc, documents.OCI_LAYER_GZIP, {DATA_LAYER: layer_digest})
        await target.put_blob(row, toc)
        rows.append(row)
        diff_ids.append(await trio.to_thread.run_sync(_diff_id, toc))
    if not rows:
        return None
    if len(rows) > LAYERS_MAX:
        raise ConfigError(
            f"the images have {len(rows)} layers, and one image holds {LAYERS_MAX} tables of contents; "
            "leave --external-toc out, or convert fewer platforms at once"
        )
    raw_config = documents.toc_config_json(diff_ids)
    config = documents.described(raw_config, documents.OCI_CONFIG)
    await target.put_blob(config, raw_config)
    raw = documents.manifest_json(config, rows, {})
    descriptor = documents.described(raw, OCI_MANIFEST)
    await target.name_image(raw, descriptor, EXTERNAL_SUFFIX)
    return descriptor


def _diff_id(toc: bytes) -> str:
    """Digest of what `toc` unfolds to, which may be a gigabyte and is never held as a whole."""
    with gzip.open(io.BytesIO(toc)) as plain:
        return f"sha256:{hashlib.file_digest(plain, 'sha256').hexdigest()}"
