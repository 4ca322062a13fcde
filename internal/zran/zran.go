// Package zran reads gzip data at random.
//
// A gzip file can be decompressed from its start only, unless somebody has kept
// places where a deflate block begins, each with the 32 KiB of output before it.
// Build reads a file once and finds such places; a Decoder starts at one.
//
// The places are those that SOCI's builder finds, in its convention, so that an
// index is the same whoever makes it. What holds for them (soci-snapshotter
// 0.16.1, ztoc/compression/gzip_zinfo.c, generate_zinfo_from_fp):
//
//   - A checkpoint may lie where a member's deflate data begins, and where a
//     block ends that is not the member's last.
//   - It does where nothing has been decompressed yet, which the first member's
//     beginning is always and blocks or members without data after it may be; and
//     where more than the span size has been decompressed since the checkpoint
//     before. So In and Bits grow from one to the next, Out may stay.
//   - Offsets, spans and windows run on across members as if the file were one.
//     A deflate stream never refers to what came before its member, so a window
//     that reaches back further does no harm.
//
// A file is members one after the other (RFC 1952, section 2.2). What follows the
// last one and does not begin as a member does is ignored, zeros or not, as
// gzip(1) ignores it: tape blocks are padded so. (compress/gzip refuses it.) A
// member that begins and is not right is an error.
//
// Neither keeps more than a window and a read buffer in memory. Neither trusts
// its input: wrong data or a wrong checkpoint gives an error or, as far as a
// checksum of gzip does not cover what is decoded, other bytes, which only a
// digest of the caller's can tell. Build verifies all checksums, a Decoder none of
// the data's, since it rarely sees the whole of a member.
package zran

import (
	"errors"
	"fmt"
)

// WindowSize is how far back deflate data may refer (RFC 1951, section 2).
const WindowSize = 32 << 10

var (
	// ErrNotGzip: the data does not begin with a gzip member.
	ErrNotGzip = errors.New("not gzip data")
	// ErrCorrupt: the data is not what gzip(1) would write. Data that ends too
	// early is io.ErrUnexpectedEOF instead.
	ErrCorrupt = errors.New("gzip data is corrupt")
	// ErrCheckpoint: a checkpoint is none that any file could have.
	ErrCheckpoint = errors.New("checkpoint is not valid")
)

// Checkpoint is a place in a gzip file where decoding can begin.
type Checkpoint struct {
	// In is the offset in the file of the first byte that belongs to the
	// checkpoint with all its bits.
	In int64
	// Out is the offset in the decompressed data.
	Out int64
	// Bits, 0 to 7, is how many high bits of the byte before In belong to the
	// checkpoint too, before In's.
	Bits uint8
	// Window is the decompressed data before Out, min(Out, WindowSize) bytes of
	// it. A longer one counts from its end: SOCI pads with zeros in front.
	Window []byte
}

// Start is the offset in the file of the first byte that decoding needs: In, or
// the byte before it where that has bits left. The data up to the next
// checkpoint is what lies in [c.Start(), next.In); the byte in which both meet
// belongs to both ranges.
func (c Checkpoint) Start() int64 {
	if c.Bits > 0 {
		return c.In - 1
	}
	return c.In
}

// check says what no checkpoint can be.
func (c Checkpoint) check() error {
	if c.In < 0 || c.Out < 0 || c.Bits > 7 || c.Start() < 0 {
		return fmt.Errorf("%w: in %d, out %d, bits %d", ErrCheckpoint, c.In, c.Out, c.Bits)
	}
	return nil
}

// window is Window as it can be: not longer than what there is before Out.
func (c Checkpoint) window() []byte {
	n := min(int64(len(c.Window)), c.Out, WindowSize)
	return c.Window[int64(len(c.Window))-n:]
}
