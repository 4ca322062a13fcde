package jtoc

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/lacunafs/lacuna/internal/leaktest"
	"github.com/lacunafs/lacuna/internal/toc"
)

func TestMain(m *testing.M) { leaktest.Main(m) }

const digest = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

func read(text string) (*toc.TOC, error) {
	return Read(strings.NewReader(text), Layout{BlobSize: 1100, DataEnd: 1000, Codec: toc.Gzip})
}

// entries is a whole text around its entries.
func entries(e ...string) string { return `{"version":1,"entries":[` + strings.Join(e, ",") + `]}` }

func TestChunks(t *testing.T) {
	for name, c := range map[string]struct{ in, want string }{
		"next offset": {entries(
			`{"name":"a","type":"reg","size":5,"offset":10}`, `{"name":"b","type":"reg","size":6,"offset":50}`),
			"[0,5)@10+40 [0,6)@50+950"},
		"out of order": {entries(
			`{"name":"a","type":"reg","size":5,"offset":60}`, `{"name":"b","type":"reg","size":6,"offset":50}`),
			"[0,5)@60+940 [0,6)@50+10"},
		"one member": {entries(
			`{"name":"a","type":"reg","size":5,"innerOffset":512}`, `{"name":"b","type":"reg","size":6,"innerOffset":2048}`),
			"[0,5)@0+1000/512 [0,6)@0+1000/2048"},
		"chunks": {entries(
			`{"name":"a","type":"reg","size":25,"chunkSize":10,"offset":10}`,
			`{"name":"a","type":"chunk","chunkOffset":10,"chunkSize":10,"offset":20}`,
			`{"name":"./a","type":"chunk","chunkOffset":20,"offset":30}`),
			"[0,10)@10+10 [10,20)@20+10 [20,25)@30+970"},
		"zeros and end": {entries(
			`{"name":"a","type":"reg","size":25,"chunkSize":10,"offset":10,"endOffset":45}`,
			`{"name":"a","type":"chunk","chunkOffset":10,"chunkSize":10,"offset":20,"chunkType":"zeros"}`,
			`{"name":"a","type":"chunk","chunkOffset":20,"chunkSize":5,"offset":30}`),
			"[0,10)@10+10 [20,25)@30+15"},
		"landmarks": {entries(
			`{"name":"a","type":"reg","size":5,"offset":10}`, `{"name":".prefetch.landmark","type":"reg","size":1,"offset":50}`,
			`{"name":"d/.prefetch.landmark","type":"reg","size":1,"offset":60}`),
			"[0,5)@10+40 [0,1)@60+940"},
		"left out with its chunks": {entries(
			`{"name":".wh..wh.x","type":"reg","size":5,"chunkSize":3,"offset":10}`, `{"name":".wh..wh.x","type":"chunk","chunkOffset":3,"offset":20}`),
			""},
		"nulls and others": {`{"tarSplitDigest":[{"x":[1.5e+3,true,false,null,"\ud83d\ude00"]}],"entries":[
			{"xattrs":null,"modtime":null,"name":"a","type":"reg","size":5,"offset":10,"userName":"\"\\\/\b\f\n\r\té"} ] , "version" : 1 }`,
			"[0,5)@10+990"},
		"nothing": {`{"version":1,"entries":null}`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := read(c.in)
			if err != nil {
				t.Fatal(err)
			}
			var b strings.Builder
			for _, e := range got.Entries {
				for _, c := range e.Chunks {
					fmt.Fprintf(&b, " [%d,%d)@%d+%d", c.Off, c.Off+c.Len, c.BlobOff, c.BlobLen)
					if c.Inner > 0 {
						fmt.Fprintf(&b, "/%d", c.Inner)
					}
				}
			}
			if s := strings.TrimSpace(b.String()); s != c.want {
				t.Errorf("got  %s\nwant %s", s, c.want)
			}
		})
	}
}

func TestStringsAreBytes(t *testing.T) {
	got, err := read(entries("{\"name\":\"\\u00e9\\n\\ud83d\\ude00\xff\",\"type\":\"symlink\",\"linkName\":\"../\xfe\",\"mode\":33279,"+
		`"uid":4294967295,"gid":0,"modtime":"2023-01-02T03:04:05.25+01:00","xattrs":{"user.a":"AP8=","user.\u0062":""}}`,
		`{"name":"z","type":"dir","modtime":"0001-01-01T00:00:00Z"}`))
	if err != nil {
		t.Fatal(err)
	}
	want := toc.Entry{
		Name: "é\n😀\xff", Type: toc.Symlink, Link: "../\xfe", Mode: 0o777, UID: 1<<32 - 1, Sec: 1672625045, Nsec: 250000000,
		Xattrs: []toc.Xattr{{Name: "user.a", Value: "\x00\xff"}, {Name: "user.b"}},
	}
	if !reflect.DeepEqual(got.Entries[0], want) || got.Entries[1].Sec != 0 {
		t.Errorf("got  %+v\nwant %+v", got.Entries, want)
	}
}

func TestWholeDigestServesTheOnlyChunk(t *testing.T) {
	layout := Layout{BlobSize: 1100, DataEnd: 1000, Codec: toc.Zstd, NeedDigests: true}
	one := `{"name":"a","type":"reg","size":5,"offset":10,"digest":"` + digest + `"}`
	got, err := Read(strings.NewReader(entries(one)), layout)
	if err != nil || got.Entries[0].Chunks[0].Digest != digest {
		t.Errorf("%+v, %v", got, err)
	}
	two := `{"name":"a","type":"reg","size":5,"chunkSize":3,"offset":10,"digest":"` + digest + `"},{"name":"a","type":"chunk","chunkOffset":3,"offset":20}`
	if _, err := Read(strings.NewReader(entries(two)), layout); !errors.Is(err, toc.ErrInvalid) {
		t.Errorf("%v", err)
	}
}

func TestHostileTextsAreRefused(t *testing.T) {
	reg := func(more string) string { return entries(`{"name":"a","type":"reg","size":5,"offset":10` + more + `}`) }
	for name, text := range map[string]string{
		"empty": "", "cut": `{"version":1,"entries":[{"name":"a`, "no entries": `{"version":1}`, "no version": `{"entries":[]}`,
		"version": `{"version":2,"entries":[]}`, "more": entries() + "x", "two": entries() + entries(), "array": "[]",
		"two versions": `{"version":1,"version":1,"entries":[]}`, "two lists": `{"version":1,"entries":[],"entries":[]}`,
		"comma": `{"version":1,"entries":[],}`, "no comma": `{"version":1 "entries":[]}`, "nested": `{"x":` + strings.Repeat("[", 10000),
		"long string": `{"x":"` + strings.Repeat("x", 3<<20) + `"}`, "long escaped": `{"x":"\n` + strings.Repeat("x", 3<<20) + `"}`,
		"control": "{\"a\x01b\":1}", "escape": `{"\q":1}`, "surrogate": `{"\ud83d":1}`, "half": `{"\ud83d\u0041":1}`, "hex": `{"\u00zz":1}`,
		"word": `{"x":nope}`, "number": `{"x":+1}`,

		"key twice": reg(`,"size":5`), "xattr twice": reg(`,"xattrs":{"a":"","a":""}`), "xattrs twice": reg(`,"xattrs":{},"xattrs":{}`),
		"fraction": reg(`,"uid":1.5`), "exponent": reg(`,"uid":1e3`), "zeros": reg(`,"uid":007`), "string": reg(`,"uid":"1"`),
		"large number": reg(`,"mode":9223372036854775808`), "no digits": reg(`,"mode":-`), "base64": reg(`,"xattrs":{"a":"AP8"}`),
		"owner": reg(`,"uid":4294967296`), "negative owner": reg(`,"gid":-1`), "time": reg(`,"modtime":"yesterday"`),

		"size":       entries(`{"name":"a","type":"reg","size":-5,"offset":10}`),
		"large size": entries(`{"name":"a","type":"reg","size":9223372036854775807,"offset":10}`),
		"no offset":  entries(`{"name":"a","type":"reg","size":5}`), "negative offset": entries(`{"name":"a","type":"reg","size":5,"offset":-1}`),
		"past the data": entries(`{"name":"a","type":"reg","size":5,"offset":1000}`),
		"end before":    reg(`,"endOffset":10`), "end past data": reg(`,"endOffset":1001`), "negative inner": reg(`,"innerOffset":-1`),
		"huge inner": reg(`,"innerOffset":9223372036854775807`),
		"short":      reg(`,"chunkSize":3`), "long": reg(`,"chunkSize":6`), "negative chunk": reg(`,"chunkSize":-5`), "late": reg(`,"chunkOffset":1`),
		"digest": reg(`,"chunkDigest":"sha512:00"`), "chunk type": reg(`,"chunkType":"x"`),
		"chunk of nothing": entries(`{"name":"a","type":"chunk","chunkOffset":0,"offset":10}`),
		"chunk of another": entries(`{"name":"a","type":"reg","size":5,"chunkSize":3,"offset":10}`, `{"name":"b","type":"chunk","chunkOffset":3,"offset":20}`),
		"chunk of a dir":   entries(`{"name":"a","type":"dir"}`, `{"name":"a","type":"chunk","offset":20}`),
		"overlap": entries(`{"name":"a","type":"reg","size":5,"chunkSize":3,"offset":10}`,
			`{"name":"a","type":"chunk","chunkOffset":2,"chunkSize":3,"offset":20}`),
		"type": entries(`{"name":"a","type":"socket"}`), "no type": entries(`{"name":"a"}`), "no name": entries(`{"type":"dir"}`),
		"dots": entries(`{"name":"a/../../b","type":"dir"}`), "NUL": entries(`{"name":"a\u0000","type":"dir"}`),
		"through symlink": entries(`{"name":"a","type":"symlink","linkName":"/"}`, `{"name":"a/b","type":"dir"}`),
		"device":          entries(`{"name":"a","type":"char","devMajor":4096}`),
		"case":            entries(`{"Name":"a","type":"dir"}`),
	} {
		if got, err := read(text); !errors.Is(err, toc.ErrInvalid) && !errors.Is(err, toc.ErrLimit) {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}

// spaces is JSON text that never comes to anything.
type spaces struct{ n int64 }

func (s *spaces) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = ' '
	}
	s.n += int64(len(p))
	return len(p), nil
}

func TestEndlessTextEnds(t *testing.T) {
	s := new(spaces)
	err := newLexer(s, 5<<20).document(func(*entry) error { return nil })
	if !errors.Is(err, toc.ErrLimit) || s.n > 5<<20 {
		t.Errorf("%v after %d bytes", err, s.n)
	}
}

func TestPiecesOfAnySizeReadTheSame(t *testing.T) {
	text := large(300)
	want, err := read(text)
	if err != nil {
		t.Fatal(err)
	}
	layout := Layout{BlobSize: 1100, DataEnd: 1000, Codec: toc.Gzip}
	got, err := Read(iotest.DataErrReader(iotest.OneByteReader(strings.NewReader(text))), layout)
	if err != nil || fmt.Sprint(got) != fmt.Sprint(want) {
		t.Error(err)
	}
	errTest := errors.New("test")
	if _, err := Read(iotest.TimeoutReader(iotest.HalfReader(strings.NewReader(text))), layout); !errors.Is(err, iotest.ErrTimeout) {
		t.Error(err)
	}
	if _, err := Read(iotest.ErrReader(errTest), layout); !errors.Is(err, errTest) {
		t.Error(err)
	}
}

// large is the text of n small files, indented as stargz-snapshotter does it.
func large(n int) string {
	var list []map[string]any
	for i := range n {
		list = append(list, map[string]any{
			"name": fmt.Sprintf("usr/lib/python3/dist-packages/package%d/module_%d.py", i/40, i), "type": "reg", "size": 5,
			"modtime": "2023-11-14T22:13:20Z", "mode": 33188, "uid": 0, "gid": 0, "offset": 10 + i%900, "digest": digest, "chunkDigest": digest,
		})
	}
	b, err := json.MarshalIndent(map[string]any{"version": 1, "entries": list}, "", "\t")
	if err != nil {
		panic(err)
	}
	return string(b)
}

func BenchmarkRead120k(b *testing.B) {
	text := large(120_000)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		layout := Layout{BlobSize: 1100, DataEnd: 1000, Codec: toc.Gzip, Packed: 50 * 120_000}
		if _, err := Read(strings.NewReader(text), layout); err != nil {
			b.Fatal(err)
		}
	}
}

// One directory of 100,000 names.
func TestManyFilesInOneDirectory(t *testing.T) {
	const n = 100_000
	var list []string
	for i := range n {
		list = append(list, fmt.Sprintf(`{"name":"d/%d","type":"reg","size":5,"offset":%d}`, i*7919%n, 10+i))
	}
	got, err := Read(strings.NewReader(entries(list...)), Layout{BlobSize: 2 * n, DataEnd: 2*n - 1, Codec: toc.Gzip})
	if err != nil {
		t.Fatal(err)
	}
	if err := got.Validate(); err != nil {
		t.Error(err)
	}
	if e := got.Entries[n-1]; len(got.Entries) != n || e.Name != fmt.Sprintf("d/%d", (n-1)*7919%n) {
		t.Errorf("%d entries, the last %q", len(got.Entries), e.Name)
	}
}

// FuzzRead wants what Read takes to be JSON, and its TOC to be valid.
func FuzzRead(f *testing.F) {
	f.Add([]byte(large(3)))
	f.Add([]byte(entries(`{"name":"a","type":"reg","size":25,"chunkSize":10,"offset":10,"endOffset":45}`,
		`{"name":"a","type":"chunk","chunkOffset":10,"chunkSize":10,"offset":20,"chunkType":"zeros"}`,
		`{"name":"a","type":"chunk","chunkOffset":20,"chunkSize":5,"offset":30}`)))
	f.Add([]byte(entries(`{"name":"\u00e9\ud83d\ude00","type":"symlink","linkName":"x","xattrs":{"user.a":"AP8="},"x":[1.5e+3,true,null,{}]}`)))
	f.Fuzz(func(t *testing.T, text []byte) {
		got, err := Read(bytes.NewReader(text), Layout{BlobSize: 1100, DataEnd: 1000, Codec: toc.Gzip})
		if err != nil {
			if !errors.Is(err, toc.ErrInvalid) && !errors.Is(err, toc.ErrLimit) {
				t.Errorf("error of no kind: %v", err)
			}
			return
		}
		if err := got.Validate(); err != nil {
			t.Error(err)
		}
		// Numbers that mean nothing are not looked at.
		if !json.Valid(text) && !bytes.ContainsAny(text, "+-.0123456789") {
			t.Error("this is no JSON")
		}
	})
}
