package cache

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// CheckOptions say how far a check of an object goes. The zero value compares
// presence with the holes of the data file, and reads no data.
type CheckOptions struct {
	// Verify returns the right n bytes from off, for comparison of all that
	// is present; nil for none. The check closes what it returns.
	Verify func(ctx context.Context, off, n int64) (io.ReadCloser, error)
	// Parts are what is known of the bytes, in order and without overlap; nil
	// for nothing. Between parts the object must be zeros. A part that is not
	// wholly present, or has no digest, is not compared. With Parts, Verify
	// is not asked.
	Parts *[]Part
	// Digest reads a complete object that has a SHA256 and compares.
	Digest bool
	// Repair forgets, durably, what was found wrong: it is fetched again.
	Repair bool
	// Progress, if set, is told the bytes read so far, now and then.
	Progress func(read int64)
}

// Report is what a check of an object found.
type Report struct {
	ID      ondemand.ObjectID `json:"id"`
	Size    int64             `json:"size"`
	Blocks  int64             `json:"blocks"`  // of the object
	Present int64             `json:"present"` // bytes recorded as present
	// Recovered is what opening the object found amiss. In a writable root
	// that is put right already; in a read-only one it is still on disk.
	Recovered Recovery `json:"recovered,omitzero"`
	// Holes are recorded as present and are holes in the data file.
	Holes []ondemand.Range `json:"holes,omitempty"`
	// Mismatches are blocks that are present with other bytes than the
	// source has; all of the object, or of a part, where its digest is
	// another one.
	Mismatches []ondemand.Range `json:"mismatches,omitempty"`
	// Compared is how many bytes were compared with the source or with the
	// digests of parts.
	Compared int64 `json:"compared"`
	// Digest is the SHA256 of the data, where it was computed.
	Digest string `json:"digest,omitempty"`
	// Verified: something is present, and all of it was compared with the
	// source, or with digests, and is right.
	Verified bool `json:"verified"`
	// Unverifiable: it was to be compared, and something is present of which nothing
	// has a digest.
	Unverifiable bool `json:"unverifiable,omitempty"`
	// Repaired: holes and mismatches are forgotten, and will be fetched again.
	Repaired bool `json:"repaired"`

	readOnly bool
}

// Corrupt tells whether something is recorded as present that is not right, or
// was until this check repaired it. Bad slots alone are no corruption: a crash
// during a checkpoint leaves them.
func (r Report) Corrupt() bool {
	return (r.readOnly && (r.Recovered.Reset != "" || len(r.Recovered.Holes) > 0)) ||
		len(r.Holes) > 0 || len(r.Mismatches) > 0
}

// checkPiece is how much data a check reads at once, in whole blocks.
const checkPiece = 256 << 10

// Check proves presence against the data. It reads present ranges only, so a
// check beside the daemon that serves the file waits for no fill. The error is
// of the check itself; what it found is in the report, also when it fails.
func (o *Object) Check(ctx context.Context, opt CheckOptions) (Report, error) {
	whole := ondemand.Range{Len: o.size}
	rep := Report{
		ID: o.id, Size: o.size, Blocks: ondemand.BlockCount(o.size), Present: o.Present(),
		Recovered: o.found, readOnly: o.root.readOnly,
	}
	if opt.Repair && o.root.readOnly {
		return rep, fmt.Errorf("check %s: repair: %w", o.id.Short(), ErrReadOnly)
	}
	err := o.checkInto(ctx, &rep, opt, whole)
	if err == nil && opt.Repair && rep.Corrupt() {
		o.saving.Lock()
		err = o.invalidate(slices.Concat(rep.Holes, rep.Mismatches))
		o.saving.Unlock()
		rep.Repaired = err == nil
	}
	if err != nil {
		return rep, fmt.Errorf("check %s: %w", o.id.Short(), err)
	}
	return rep, nil
}

func (o *Object) checkInto(ctx context.Context, rep *Report, opt CheckOptions, whole ondemand.Range) error {
	claimed := o.presence.Present(whole)
	holes, err := findHoles(o.data, claimed, o.size)
	if err != nil {
		return err
	}
	rep.Holes = holes
	for _, h := range holes {
		// A hole would only be compared as the zeros that it reads as.
		var rest []ondemand.Range
		for _, c := range claimed {
			rest = append(rest, without([]ondemand.Range{c}, h)...)
		}
		claimed = rest
	}
	if opt.Digest && o.Meta().SHA256 != "" && o.Complete() && len(holes) == 0 {
		if err := o.checkDigest(ctx, rep, opt); err != nil {
			return err
		}
	}
	total := int64(0)
	for _, c := range claimed {
		total += c.Len
		if opt.Verify == nil || opt.Parts != nil {
			continue
		}
		if err := o.compare(ctx, rep, c, opt); err != nil {
			return err
		}
	}
	if opt.Parts != nil {
		if err := o.checkParts(ctx, rep, claimed, opt); err != nil {
			return err
		}
	}
	proved := rep.Digest != "" || total > 0 && rep.Compared == total
	rep.Verified = proved && !rep.Corrupt()
	return nil
}

// checkDigest compares the digest of a complete object with the one it must have.
func (o *Object) checkDigest(ctx context.Context, rep *Report, opt CheckOptions) error {
	sum := sha256.New()
	buf := make([]byte, checkPiece)
	for off := int64(0); off < o.size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(checkPiece, o.size-off)
		if _, err := o.data.ReadAt(buf[:n], off); err != nil {
			return fmt.Errorf("read data at %d: %w", off, err)
		}
		sum.Write(buf[:n])
		off += n
		if opt.Progress != nil {
			opt.Progress(off)
		}
	}
	rep.Digest = hex.EncodeToString(sum.Sum(nil))
	if rep.Digest != o.Meta().SHA256 {
		rep.Mismatches = []ondemand.Range{{Len: o.size}}
	}
	return nil
}

// compare compares the present range c with the source. A block that is made
// missing meanwhile is not compared.
func (o *Object) compare(ctx context.Context, rep *Report, c ondemand.Range, opt CheckOptions) (err error) {
	src, err := opt.Verify(ctx, c.Off, c.Len)
	if err != nil {
		return fmt.Errorf("read source %v: %w", c, err)
	}
	defer func() { err = errors.Join(err, src.Close()) }()
	got, want := make([]byte, checkPiece), make([]byte, checkPiece)
	for off := c.Off; off < c.End(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		n := min(checkPiece, c.End()-off)
		if _, err := io.ReadFull(src, want[:n]); err != nil {
			return fmt.Errorf("read source %v at %d: %w", c, off, err)
		}
		for _, p := range o.presence.Present(ondemand.Range{Off: off, Len: n}) {
			if _, err := o.data.ReadAt(got[:p.Len], p.Off); err != nil {
				return fmt.Errorf("read data at %d: %w", p.Off, err)
			}
			rep.addMismatches(got[:p.Len], want[p.Off-off:p.End()-off], p.Off)
			rep.Compared += p.Len
		}
		off += n
		if opt.Progress != nil {
			opt.Progress(rep.Compared)
		}
	}
	return nil
}

// addMismatches notes the blocks in which got and want, both from off, differ.
func (r *Report) addMismatches(got, want []byte, off int64) {
	if bytes.Equal(got, want) {
		return
	}
	for i := 0; i < len(got); i += ondemand.BlockSize {
		end := min(i+ondemand.BlockSize, len(got))
		if !bytes.Equal(got[i:end], want[i:end]) {
			r.Mismatches = appendRange(r.Mismatches, ondemand.Range{Off: off + int64(i), Len: int64(end - i)})
		}
	}
}
