package tarscan

import (
	"archive/tar"
	"bufio"
	"bytes"
	"errors"
	"io"
	"testing"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

func sniffed(layer []byte) (toc.Codec, error) {
	return sniff(bufio.NewReader(bytes.NewReader(layer)))
}

// reference reads a layer with archive/tar. It is not ok where that refuses
// it, or where the rules for names that occur twice would have to be known.
func reference(layer []byte) (map[string]toctest.Item, bool) {
	seen := make(map[string]bool)
	for r := tar.NewReader(bytes.NewReader(layer)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil || seen[h.Name] || h.Size > 1<<24 {
			return nil, false
		}
		if h.Typeflag == typePAXGlobal {
			continue
		}
		seen[h.Name] = true
		if _, err := io.Copy(io.Discard, r); err != nil {
			return nil, false
		}
	}
	var quiet quietTB
	items := toctest.Want(&quiet, layer, toctest.Loss{})
	return items, !quiet.failed && len(items) == len(seen)
}

// quietTB takes failures for an answer.
type quietTB struct {
	testing.TB
	failed bool
}

func (q *quietTB) Helper()      {}
func (q *quietTB) Fatal(...any) { q.failed = true }
