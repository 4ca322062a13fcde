package main

import (
	"testing"

	"github.com/lacunafs/lacuna/internal/control"
)

func TestLayerText(t *testing.T) {
	const digest = "sha256:0123456789abcdef0123456789abcdef"
	for want, l := range map[string]control.MountedLayer{
		"  layer     sha256:0123456789ab  scanned: no data\n": {Digest: digest, Format: "scanned", Verified: true},
		"  layer     sha256:0123456789ab  estargz: 1.0 MiB of 10.0 MiB, 3 of 40 files\n              7 reads present, 2 missed, fetched 512.0 KiB in 1 request\n": {
			Digest: digest, Format: "estargz", Size: 10 << 20, Present: 1 << 20, Files: 40, FilesPresent: 3, Hits: 7, Misses: 2, Requests: 1, Fetched: 512 << 10, Verified: true,
		},
		"  layer     sha256:0123456789ab  zstd:chunked: 0 B of 4.0 KiB, 0 of 1 file, no digests\n": {
			Digest: digest, Format: "zstd:chunked", Size: 4096, Files: 1,
		},
		"  layer     sha256:0123456789ab  scanned: 4.0 KiB of 4.0 KiB, 1 of 1 file\n              read whole: as estargz: its reason\n": {
			Digest: digest, Format: "scanned", Size: 4096, Present: 4096, Files: 1, FilesPresent: 1, Verified: true, Why: "as estargz: its reason",
		},
		"  layer     sha256:0123456789ab  soci v2: 0 B of 4.0 KiB, its index is not here yet\n": {Digest: digest, Format: "soci v2", Size: 4096},
		"  layer     sha256:0123456789ab  soci v1: 0 B of 4.0 KiB\n              error: zTOC: it is another\n": {
			Digest: digest, Format: "soci v1", Size: 4096, Error: "zTOC: it is another",
		},
	} {
		if got := layerText(l); got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}
