package zran

import (
	"errors"
	"fmt"
	"io"
)

// lookahead is how many bytes after the end of a block the library may want
// before it gives the block's last bytes: up to 10 bits, the shortest block that
// can follow (flate/inflate.go, readHuffman).
const lookahead = 2

// Decoder decodes from checkpoints. The zero value can be used; it keeps its
// buffers from one Decode to the next. One goroutine at a time may use it, and it
// must not be copied.
type Decoder struct {
	in input
}

// Decode fills dst with decompressed data from c.Out on. compressed begins at
// c.Start() of the file and must reach at least to the end of the deflate block
// that holds dst's last byte, so to In of the next checkpoint or to the file's end;
// what follows does not matter. dst may run across members.
//
// It reads more of compressed than it needs, and all of it where there is no data
// in it: whoever hands it in bounds it. Where compressed, or the last
// member, ends too early, the error is io.ErrUnexpectedEOF. After an error dst
// holds no particular bytes.
func (d *Decoder) Decode(dst []byte, c Checkpoint, compressed io.Reader) error {
	if err := d.decode(dst, c, compressed); err != nil {
		return fmt.Errorf("decode [%d,+%d) from checkpoint at %d: %w", c.Out, len(dst), c.In, err)
	}
	return nil
}

func (d *Decoder) decode(dst []byte, c Checkpoint, compressed io.Reader) error {
	if err := c.check(); err != nil {
		return err
	}
	if len(dst) == 0 {
		return nil
	}
	// At the end of a span the library looks ahead into the next one, which may
	// not be there; zeros do as well. That dst does not come from them is seen
	// below.
	d.in.reset(compressed, lookahead)
	defer d.in.reset(nil, 0) // let go of the reader
	var (
		got   int // bytes in dst
		begin int // got where the member began
		sound int // output up to the last block that ends in real input
	)
	onBlock := func(b block) {
		if b.bit <= d.in.real*8 {
			sound = begin + int(b.out)
		}
	}
	data := d.in.inflate(-c.Bits&7, c.window(), onBlock)
	for got < len(dst) {
		n, err := data.Read(dst[got:])
		got += n
		switch {
		case err == nil || got == len(dst):
		case errors.Is(err, io.EOF):
			if err := d.nextMember(); err != nil {
				return err
			}
			begin = got
			data = d.in.inflate(0, nil, onBlock)
		case d.in.pos() > d.in.real: // zeros are not deflate data either
			return io.ErrUnexpectedEOF
		default:
			return inflateError(err)
		}
	}
	// Where zeros are in the library's bit buffer, they are lookahead if the block
	// that holds dst's end itself ends before them. That shows when it is decoded
	// to its end, which is near: there is no more input.
	for d.in.pos() > d.in.real && sound < got {
		var more [512]byte
		if _, err := data.Read(more[:]); err != nil && sound < got {
			return io.ErrUnexpectedEOF
		}
	}
	return nil
}

// nextMember reads from one member's deflate data to the next one's.
func (d *Decoder) nextMember() error {
	if _, err := d.in.br.Discard(trailerSize); err != nil {
		return noEOF(err)
	}
	err := readHeader(d.in.br)
	if errors.Is(err, errNoMember) || err != nil && d.in.pos() > d.in.real {
		return io.ErrUnexpectedEOF
	}
	return err
}
