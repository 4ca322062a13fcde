package zran

import (
	"bytes"
	stdgzip "compress/gzip"
	"encoding/binary"
	"flag"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/klauspost/compress/flate"
	"github.com/klauspost/compress/gzip"

	"github.com/lacunafs/lacuna/internal/leaktest"
)

var seedFlag = flag.Uint64("seed", 0, "seed of the random data; 0 takes the time")

func TestMain(m *testing.M) { leaktest.Main(m) }

func newRand(t testing.TB) *rand.Rand {
	t.Helper()
	seed := *seedFlag
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed %d", seed)
	return rand.New(rand.NewPCG(seed, 1))
}

// stream is a gzip file and what it decompresses to.
type stream struct {
	name       string
	raw, plain []byte
}

func text(rnd *rand.Rand, n int) []byte {
	words := []string{"range", "blob", "layer", "cache", "miss", "fill", "hole", "event", "digest"}
	var b []byte
	for len(b) < n {
		b = append(append(b, words[rnd.IntN(len(words))]...), byte(' '+rnd.IntN(60)))
	}
	return b[:n]
}

// noise does not compress, so that it ends up in stored blocks.
func noise(rnd *rand.Rand, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	return b
}

func mixed(rnd *rand.Rand, n int) []byte {
	var b []byte
	for len(b) < n {
		switch k := 1 + rnd.IntN(40000); rnd.IntN(5) {
		case 0:
			b = append(b, make([]byte, k)...)
		case 1, 2:
			b = append(b, noise(rnd, k)...)
		default:
			b = append(b, text(rnd, k)...)
		}
	}
	return b[:n]
}

// writer is a compressor.
type writer interface {
	io.WriteCloser
	Flush() error
}

// compress writes data in pieces, with a flush after some of them.
func compress(t testing.TB, rnd *rand.Rand, data []byte, flush bool, open func(io.Writer) (writer, error)) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := open(&b)
	if err != nil {
		t.Fatal(err)
	}
	for len(data) > 0 {
		n := min(len(data), 1+rnd.IntN(30000))
		if _, err := w.Write(data[:n]); err != nil {
			t.Fatal(err)
		}
		data = data[n:]
		if flush && rnd.IntN(2) == 0 {
			if err := w.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func deflated(t testing.TB, rnd *rand.Rand, data []byte, level int) []byte {
	t.Helper()
	return compress(t, rnd, data, level%2 == 0, func(w io.Writer) (writer, error) { return flate.NewWriter(w, level) })
}

// header has every optional field that flags say, the header's checksum included.
func header(flags byte) []byte {
	h := []byte{0x1f, 0x8b, 8, flags, 1, 2, 3, 4, 0, 255}
	if flags&flagExtra != 0 {
		h = append(h, 5, 0, 'e', 0x1f, 0x8b, 8, 0)
	}
	if flags&flagName != 0 {
		h = append(h, "name\x00"...)
	}
	if flags&flagComment != 0 {
		h = append(h, "a comment\x00"...)
	}
	if flags&flagHeaderCRC != 0 {
		h = binary.LittleEndian.AppendUint16(h, uint16(crc32.ChecksumIEEE(h)))
	}
	return h
}

func trailer(plain []byte) []byte {
	b := binary.LittleEndian.AppendUint32(nil, crc32.ChecksumIEEE(plain))
	return binary.LittleEndian.AppendUint32(b, uint32(len(plain)))
}

// members joins parts, each a member with other fields in its header.
func members(t testing.TB, rnd *rand.Rand, parts ...[]byte) stream {
	t.Helper()
	s := stream{name: fmt.Sprintf("%d members", len(parts))}
	for i, p := range parts {
		s.raw = append(s.raw, header(byte(i*2)&^flagReserved)...)
		s.raw = append(s.raw, deflated(t, rnd, p, 1+rnd.IntN(9))...)
		s.raw = append(s.raw, trailer(p)...)
		s.plain = append(s.plain, p...)
	}
	return s
}

// libraryStreams come from libraries for Go, at every level.
func libraryStreams(t testing.TB, rnd *rand.Rand, size int) []stream {
	t.Helper()
	data := mixed(rnd, size)
	var all []stream
	for level := stdgzip.HuffmanOnly; level <= stdgzip.BestCompression; level++ {
		all = append(all, stream{fmt.Sprintf("compress/gzip %d", level), compress(t, rnd, data, level%3 == 0,
			func(w io.Writer) (writer, error) { return stdgzip.NewWriterLevel(w, level) }), data})
	}
	for level := gzip.StatelessCompression; level <= gzip.BestCompression; level++ {
		all = append(all, stream{fmt.Sprintf("klauspost %d", level), compress(t, rnd, data, level%3 == 1,
			func(w io.Writer) (writer, error) { return gzip.NewWriterLevel(w, level) }), data})
	}
	one := func(name string, data []byte) {
		s := members(t, rnd, data)
		s.name = name
		all = append(all, s)
	}
	one("text", text(rnd, size))
	one("noise", noise(rnd, size))
	one("zeros", make([]byte, size))
	one("one byte", []byte{1})
	one("nothing", nil)
	many := make([][]byte, 40)
	for i := range many {
		many[i] = mixed(rnd, rnd.IntN(4000)*(i%3))
	}
	all = append(all,
		members(t, rnd, nil, nil, text(rnd, 10), nil, data[:size/2], noise(rnd, 5), nil, data[size/2:], nil),
		members(t, rnd, many...))
	padded := members(t, rnd, data)
	padded.name, padded.raw = "padded", append(padded.raw, make([]byte, 1000)...)
	return append(all, padded)
}

// fullFlush compresses standard input with zlib: a flush of kind argv[1] after
// every 10,000 bytes, memory level argv[2], strategy argv[3].
const fullFlush = `
import sys, zlib
kind, level, strategy = map(int, sys.argv[1:])
c = zlib.compressobj(6, zlib.DEFLATED, 31, level, strategy)
data = sys.stdin.buffer.read()
for i in range(0, len(data), 10000):
    sys.stdout.buffer.write(c.compress(data[i:i+10000]))
    sys.stdout.buffer.write(c.flush(kind))
sys.stdout.buffer.write(c.flush())
`

// programStreams come from the programs that layers are made with.
func programStreams(t testing.TB, rnd *rand.Rand, size int) []stream {
	t.Helper()
	data := mixed(rnd, size)
	var all []stream
	for _, argv := range [][]string{
		{"gzip", "-1"}, {"gzip", "-9"}, {"pigz", "-6", "-b", "128"}, {"pigz", "-9", "-b", "128", "-i"},
		{"python3", "-c", fullFlush, "3", "8", "0"}, // Z_FULL_FLUSH
		{"python3", "-c", fullFlush, "1", "1", "0"}, // Z_PARTIAL_FLUSH, small blocks
		{"python3", "-c", fullFlush, "5", "8", "4"}, // Z_BLOCK, Z_FIXED
	} {
		path, err := exec.LookPath(argv[0])
		if err != nil {
			if os.Geteuid() == 0 {
				t.Fatalf("%v; scripts/deps.sh installs it", err)
			}
			t.Skipf("probe: %v", err)
		}
		cmd := exec.Command(path, argv[1:]...)
		cmd.Stdin, cmd.Stderr = bytes.NewReader(data), os.Stderr
		raw, err := cmd.Output()
		if err != nil {
			t.Fatalf("%v: %v", argv, err)
		}
		all = append(all, stream{fmt.Sprintf("%s %s", argv[0], argv[len(argv)-1]), raw, data})
	}
	return all
}
