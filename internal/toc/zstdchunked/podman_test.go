package zstdchunked

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"

	"github.com/lacunafs/lacuna/internal/toc"
	"github.com/lacunafs/lacuna/internal/toc/toctest"
)

// podman writes a layer as containers/storage does: chunks that end where the data
// suggests, runs of zeros that are only named, times with fractions, the end of each
// file's data, a tar-split, and a footer of 64 bytes.
type podman struct {
	t       testing.TB
	out     bytes.Buffer
	entries []map[string]any
}

func (p *podman) frame(b []byte) {
	w, err := zstd.NewWriter(&p.out)
	if err == nil {
		_, err = w.Write(b)
	}
	if err = errors.Join(err, w.Close()); err != nil {
		p.t.Fatal(err)
	}
}

func (p *podman) skippable(b []byte) (at int) {
	p.out.Write(binary.LittleEndian.AppendUint32([]byte{0x50, 0x2a, 0x4d, 0x18}, uint32(len(b))))
	at = p.out.Len()
	p.out.Write(b)
	return at
}

func sum(b []byte) string { return fmt.Sprintf("sha256:%x", sha256.Sum256(b)) }

// file writes the data in chunks of 50000 bytes; those of zeros are named so.
func (p *podman) file(e map[string]any, data []byte) {
	e["digest"] = sum(data)
	all := []map[string]any{e}
	const size = 50_000
	for off := 0; off < len(data); off += size {
		part := data[off:min(off+size, len(data))]
		c := e
		if off > 0 {
			c = map[string]any{"type": "chunk", "name": e["name"], "chunkOffset": off}
			all = append(all, c)
		}
		c["offset"] = p.out.Len()
		if len(data) > size {
			c["chunkSize"], c["chunkDigest"] = len(part), sum(part)
			if bytes.Count(part, []byte{0}) == len(part) {
				c["chunkType"] = "zeros"
			}
		}
		p.frame(part)
	}
	e["endOffset"] = p.out.Len()
	p.entries = append(p.entries, all...)
}

func (p *podman) layer(layer []byte) map[string]string {
	types := map[byte]string{'0': "reg", '1': "hardlink", '2': "symlink", '3': "char", '4': "block", '5': "dir", '6': "fifo"}
	r := tar.NewReader(bytes.NewReader(layer))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			p.t.Fatal(err)
		}
		data, err := io.ReadAll(r)
		if err != nil {
			p.t.Fatal(err)
		}
		p.frame([]byte("the header of " + h.Name))
		e := map[string]any{
			"type": types[h.Typeflag], "name": h.Name, "linkName": h.Linkname, "mode": h.Mode, "size": h.Size,
			"uid": h.Uid, "gid": h.Gid, "modtime": h.ModTime.In(time.FixedZone("", 3600)), "devMajor": h.Devmajor, "devMinor": h.Devminor,
		}
		xattrs := make(map[string]string)
		for k, v := range h.PAXRecords {
			if name, ok := strings.CutPrefix(k, "SCHILY.xattr."); ok {
				xattrs[name] = base64.StdEncoding.EncodeToString([]byte(v))
			}
		}
		if e["xattrs"] = xattrs; len(data) > 0 {
			p.file(e, data)
		} else {
			p.entries = append(p.entries, e)
		}
	}
	text, err := json.Marshal(map[string]any{"version": 1, "entries": p.entries, "tarSplitDigest": sum(nil)})
	if err != nil {
		p.t.Fatal(err)
	}
	return p.finish(text)
}

func (p *podman) finish(text []byte) map[string]string {
	w, err := zstd.NewWriter(nil)
	if err != nil {
		p.t.Fatal(err)
	}
	packed := w.EncodeAll(text, nil)
	at := p.skippable(packed)
	split := p.skippable([]byte("a tar-split that nobody reads"))
	var footer []byte
	for _, n := range []int{at, len(packed), len(text), 1, split, 29, 100} {
		footer = binary.LittleEndian.AppendUint64(footer, uint64(n))
	}
	p.skippable(append(footer, "GNUlInUx"...))
	return map[string]string{
		"io.github.containers.zstd-chunked.manifest-checksum": sum(packed),
		"io.github.containers.zstd-chunked.manifest-position": fmt.Sprintf("%d:%d:%d:1", at, len(packed), len(text)),
		"io.github.containers.zstd-chunked.tarsplit-position": fmt.Sprintf("%d:29:100", split),
	}
}

func TestLayerAsPodmanWritesIt(t *testing.T) {
	layer := toctest.Tar(t, toctest.Torture())
	p := &podman{t: t}
	annotations := p.layer(layer)
	want := toctest.Want(t, layer, toctest.Loss{Bytes: true})
	for _, given := range []map[string]string{annotations, nil} {
		blob := &toctest.Blob{Bytes: p.out.Bytes()}
		got, err := Read(t.Context(), &toc.Layer{Blob: blob, Annotations: given})
		if err != nil {
			t.Fatal(err)
		}
		toctest.Compare(t, toctest.Got(t, got.TOC, blob.Bytes), want)
		if n := blob.Requests.Load(); n != 1 || blob.Open.Load() != 0 || got.Verified != (given != nil) {
			t.Errorf("%d requests, %d readers open, verified %v", n, blob.Open.Load(), got.Verified)
		}
		holes := 0
		for _, e := range got.TOC.Entries {
			var n int64
			for _, c := range e.Chunks {
				n += c.Len
			}
			if e.Size > n {
				holes++
			}
		}
		if holes != 2 {
			t.Errorf("%d files have holes", holes)
		}
	}
}

func TestPositionTakesOneRequestOfTheTableAlone(t *testing.T) {
	p := &podman{t: t}
	text := `{"version":1,"entries":[]}`
	annotations := p.finish([]byte(text))
	blob := &toctest.Blob{Bytes: p.out.Bytes()}
	if _, err := Read(t.Context(), &toc.Layer{Blob: blob, Annotations: annotations}); err != nil {
		t.Fatal(err)
	}
	if n := blob.Sent.Load(); blob.Requests.Load() != 1 || n > 50 {
		t.Errorf("%d requests, %d bytes", blob.Requests.Load(), n)
	}
}

func TestOtherLayersAreNotOfThisFormat(t *testing.T) {
	plain := &podman{t: t}
	plain.frame(toctest.Text(5000))
	for name, b := range map[string][]byte{"nothing": {}, "short": []byte("x"), "zstd": plain.out.Bytes(), "zeros": make([]byte, 500)} {
		if got, err := Read(t.Context(), &toc.Layer{Blob: &toctest.Blob{Bytes: b}}); !errors.Is(err, toc.ErrNotFormat) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

func TestHostilePositionsAreRefused(t *testing.T) {
	p := &podman{t: t}
	p.frame([]byte("a tar header"))
	p.finish([]byte(`{"version":1,"entries":[]}`))
	for _, position := range []string{
		"1:2:3", "1:2:3:1:5", "x:2:3:1", "-1:2:3:1", "8:10:10:1", "0:10:10:1", "9:0:10:1", "9:1000000:10:1", "9223372036854775807:10:10:1",
		"9:9223372036854775807:10:1", "18446744073709551615:10:10:1", "9:67108865:10:1", "9:10:268435457:1", "20:10:10:1",
	} {
		blob := &toctest.Blob{Bytes: p.out.Bytes()}
		l := &toc.Layer{Blob: blob, Annotations: map[string]string{"io.containers.zstd-chunked.manifest-position": position}}
		if got, err := Read(t.Context(), l); err == nil || blob.Open.Load() != 0 {
			t.Errorf("%s: %+v, %d readers open", position, got, blob.Open.Load())
		}
	}
	l := &toc.Layer{Blob: &toctest.Blob{Bytes: p.out.Bytes()}, Annotations: map[string]string{"io.containers.zstd-chunked.manifest-position": "30:10:10:2"}}
	if _, err := Read(t.Context(), l); !errors.Is(err, toc.ErrNotFormat) {
		t.Errorf("unknown type: %v", err)
	}
}

// FuzzRead wants an end to every blob, and a valid TOC or an error.
func FuzzRead(f *testing.F) {
	p := &podman{t: f}
	p.layer(toctest.Tar(f, []toctest.File{toctest.Dir("d"), toctest.Reg("d/f", []byte("data"))}))
	f.Add(p.out.Bytes())
	blob, _ := build(f, toctest.Tar(f, []toctest.File{toctest.Dir("d"), toctest.Reg("d/f", []byte("data"))}))
	f.Add(blob.Bytes)
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := Read(t.Context(), &toc.Layer{Blob: &toctest.Blob{Bytes: b}})
		if err == nil {
			if err := got.TOC.Validate(); err != nil {
				t.Error(err)
			}
		}
	})
}
