package zran

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/flate"
)

// bufferSize is what is read from a file at once. It is above WindowSize, so that
// bufio never reads a stored block around its buffer.
const bufferSize = 64 << 10

// input is compressed data, with its bytes counted.
type input struct {
	src   io.Reader
	br    *bufio.Reader // reads src through input.Read
	real  int64         // bytes that src has given
	pad   int64         // zeros that were given after src's end
	limit int64         // zeros that may be given
	ended bool
}

// reset begins to read src. After its end come padding zeros.
func (in *input) reset(src io.Reader, padding int64) {
	br := in.br
	*in = input{src: src, br: br, limit: padding}
	if br == nil {
		in.br = bufio.NewReaderSize(in, bufferSize)
		return
	}
	br.Reset(in)
}

// Read is for br.
func (in *input) Read(p []byte) (int, error) {
	if in.ended {
		n := min(int64(len(p)), in.limit-in.pad)
		if n == 0 {
			return 0, io.EOF
		}
		clear(p[:n])
		in.pad += n
		return int(n), nil
	}
	n, err := in.src.Read(p)
	in.real += int64(n)
	if errors.Is(err, io.EOF) {
		in.ended = true
		if n == 0 {
			return in.Read(p)
		}
		err = nil
	}
	return n, err
}

// pos is how many bytes were taken out of br.
func (in *input) pos() int64 { return in.real + in.pad - int64(in.br.Buffered()) }

// block is where a deflate block ends.
type block struct {
	bit    int64  // position in the input, in bits since reset
	out    int64  // what inflate's reader has decoded since it began
	last   bool   // of the member; the trailer follows
	window []byte // valid during the call
}

// inflate returns a reader of the deflate data that begins here, which reads no
// byte after its end, and calls onBlock at the end of each block. If skip is not
// 0, that many low bits of the next byte belong to what is before. window is
// output before.
//
// The library must be given a bufio.Reader: it then takes single bytes. It counts
// an input byte when it moves it into its bit buffer. A stored block begins on a
// byte boundary, so there the library takes whole bytes back out of that buffer,
// and v1.20.3 counts these a second time (flate/inflate.go, dataBlock). From then
// on every CompressedOffset is too high by the sum of such bytes, the drift.
// BitOffset is right, since drift is a whole number of bytes.
//
// What was truly taken is known from pos. With nb bits left in the bit buffer
//
//	CompressedOffset = taken + drift - ceil(nb/8)
//
// so CompressedOffset - taken is never above the drift and equals it when nb is 0,
// as it is after every stored block; and the drift changes nowhere else. So the
// running maximum is the drift, at each callback. A library that counts right
// leaves it at 0.
func (in *input) inflate(skip uint8, window []byte, onBlock func(block)) io.Reader {
	begin := in.pos()
	var drift int64
	return flate.NewReaderOpts(in.br,
		flate.WithResumeFrom(flate.InflateCheckpoint{BitOffset: skip, Window: window}),
		flate.WithEobCallback(func(c flate.InflateCheckpoint) {
			drift = max(drift, c.CompressedOffset-(in.pos()-begin))
			onBlock(block{
				bit:    (begin+c.CompressedOffset-drift)*8 + int64(c.BitOffset),
				out:    c.UncompressedOffset,
				last:   c.Final,
				window: c.Window,
			})
		}))
}

// inflateError is err of an inflating reader, without offsets that may drift.
func inflateError(err error) error {
	var corrupt flate.CorruptInputError
	var internal flate.InternalError
	if errors.As(err, &corrupt) || errors.As(err, &internal) {
		return fmt.Errorf("%w: deflate data", ErrCorrupt)
	}
	return noEOF(err)
}
