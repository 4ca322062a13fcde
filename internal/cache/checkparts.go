package cache

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/lacunafs/lacuna/internal/ondemand"
)

// Part is a range of an object of which is known what its bytes must be.
type Part struct {
	// Off and Len are the range in bytes. Len > 0.
	Off, Len int64
	// Digest is the SHA-256 of its bytes; nil where nothing is known of them.
	Digest *[sha256.Size]byte
}

func (p Part) rang() ondemand.Range { return ondemand.Range{Off: p.Off, Len: p.Len} }

var errParts = errors.New("parts are out of order or beyond the object")

// partsCheck compares what is present of an object with its parts.
type partsCheck struct {
	o       *Object
	rep     *Report
	opt     CheckOptions
	claimed []ondemand.Range // present and no holes; those behind which it is are cut off
	buf     []byte
}

// checkParts compares the parts that are wholly present with their digests, and
// what lies between parts with zeros.
func (o *Object) checkParts(ctx context.Context, rep *Report, claimed []ondemand.Range, opt CheckOptions) error {
	c := &partsCheck{o: o, rep: rep, opt: opt, claimed: claimed, buf: make([]byte, checkPiece)}
	at := int64(0)
	for _, p := range *opt.Parts {
		if p.Off < at || p.Len <= 0 || p.Off > o.size-p.Len {
			return fmt.Errorf("part %v after %d: %w", p.rang(), at, errParts)
		}
		if err := c.zeros(ctx, ondemand.Range{Off: at, Len: p.Off - at}); err != nil {
			return err
		}
		if err := c.digest(ctx, p); err != nil {
			return err
		}
		at = p.rang().End()
	}
	return c.zeros(ctx, ondemand.Range{Off: at, Len: o.size - at})
}

// skipTo cuts off what is claimed before off.
func (c *partsCheck) skipTo(off int64) {
	for len(c.claimed) > 0 && c.claimed[0].End() <= off {
		c.claimed = c.claimed[1:]
	}
}

// digest compares a part that is wholly present. One that becomes missing meanwhile
// is not compared.
func (c *partsCheck) digest(ctx context.Context, p Part) error {
	c.skipTo(p.Off)
	r := p.rang()
	if p.Digest == nil || len(c.claimed) == 0 || !c.claimed[0].Contains(r) {
		return nil
	}
	sum := sha256.New()
	err := c.read(ctx, r, func(b []byte, _ int64) { sum.Write(b) })
	if err != nil || !c.o.presence.Has(r) {
		return err
	}
	c.compared(r.Len)
	if [sha256.Size]byte(sum.Sum(nil)) != *p.Digest {
		c.rep.Mismatches = appendRange(c.rep.Mismatches, r.Blocks(c.o.size))
	}
	return nil
}

// zeros wants what is present of r to be zeros.
func (c *partsCheck) zeros(ctx context.Context, r ondemand.Range) error {
	c.skipTo(r.Off)
	for _, have := range c.claimed {
		if have.Off >= r.End() {
			break
		}
		// In pieces of whole blocks: what becomes missing meanwhile is left out.
		for part := have.Intersect(r); !part.Empty(); {
			n := min(part.Len, checkPiece-part.Off%ondemand.BlockSize)
			if err := c.piece(ctx, ondemand.Range{Off: part.Off, Len: n}); err != nil {
				return err
			}
			part = ondemand.Range{Off: part.Off + n, Len: part.Len - n}
		}
	}
	return nil
}

// piece wants a range that fits into buf to be zeros.
func (c *partsCheck) piece(ctx context.Context, r ondemand.Range) error {
	var wrong []ondemand.Range
	err := c.read(ctx, r, func(b []byte, off int64) {
		for i, v := range b {
			if v != 0 {
				wrong = appendRange(wrong, ondemand.Range{Off: off + int64(i), Len: 1}.Blocks(c.o.size))
			}
		}
	})
	if err != nil || !c.o.presence.Has(r) {
		return err
	}
	c.compared(r.Len)
	for _, w := range wrong {
		c.rep.Mismatches = appendRange(c.rep.Mismatches, w)
	}
	return nil
}

// read hands the data of r on, in order.
func (c *partsCheck) read(ctx context.Context, r ondemand.Range, to func(b []byte, off int64)) error {
	for off := r.Off; off < r.End(); {
		if err := ctx.Err(); err != nil {
			return err
		}
		b := c.buf[:min(int64(len(c.buf)), r.End()-off)]
		if _, err := c.o.data.ReadAt(b, off); err != nil {
			return fmt.Errorf("read data at %d: %w", off, err)
		}
		to(b, off)
		off += int64(len(b))
	}
	return nil
}

func (c *partsCheck) compared(n int64) {
	c.rep.Compared += n
	if c.opt.Progress != nil {
		c.opt.Progress(c.rep.Compared)
	}
}
