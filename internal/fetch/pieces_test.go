package fetch

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/lacunafs/lacuna/internal/ondemand"
	"github.com/lacunafs/lacuna/internal/source"
)

// inPieces is a blob whose bytes come in pieces that are fetched whole.
type inPieces struct {
	*scripted
	piece int64
}

func (b inPieces) Align(off, n int64) (int64, int64) {
	from := off / b.piece * b.piece
	end := min((off+n+b.piece-1)/b.piece*b.piece, b.size)
	return from, end - from
}

func newPieces(t *testing.T) *rig {
	t.Helper()
	return newRigOn(t, 64*mib, nil, func(g *rig) source.Blob { return inPieces{g.blob, 4 * mib} })
}

// Whoever waits for the start of a piece has what they wait for long before all of
// it is written. It was fetched whole, and is not fetched again.
func TestPieceIsFetchedOnceForAReaderOfItsStart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newPieces(t)
		f := g.start(4*mib, 128*kib)
		c := g.blob.next(t)
		if c.Range != (ondemand.Range{Off: 4 * mib, Len: 4 * mib}) {
			t.Fatalf("request %v", c.Range)
		}
		c.give(256 * kib)
		f.cancel() // as the table does for requests that have ended
		synctest.Wait()
		if c.isClosed() {
			t.Error("the rest of the piece is thrown away")
		}
		c.give(4 * mib)
		if err := f.ended(); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		g.read(4*mib, 4*mib)
		g.blob.none(t)
		g.cache.check(t)
		g.Close()
	})
}

// A piece of which nothing has come yet is given up with its reader.
func TestPieceThatHasNotBegunIsGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newPieces(t)
		f := g.start(4*mib, 128*kib)
		c := g.blob.next(t)
		f.cancel()
		f.sleepsNot()
		if !c.isClosed() {
			t.Error("nobody reads the piece, and it is still fetched")
		}
		g.Close()
	})
}

// The end of a piece comes with its start: no request of its own brings it sooner.
func TestReaderOfTheEndOfAPieceWaitsForIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newPieces(t)
		start := g.start(4*mib, 128*kib)
		c := g.blob.next(t)
		end := g.start(8*mib-4*kib, 4*kib)
		g.blob.none(t)
		c.give(4 * mib)
		start.succeeds()
		end.succeeds()
		g.Close()
	})
}

// across is a blob of pieces that begin in the middle of blocks.
type across struct{ inPieces }

func (b across) Align(off, n int64) (int64, int64) {
	const in = 2 * kib
	from := max((off-in)/b.piece*b.piece+in, 0)
	end := min((off+n-in+b.piece-1)/b.piece*b.piece+in, b.size)
	from, end = (from+ondemand.BlockSize-1)&^(ondemand.BlockSize-1), end&^(ondemand.BlockSize-1)
	from, end = min(from, off), max(end, off+n)
	return from, end - from
}

// A piece that was fetched for the block that it has only the end of is kept.
func TestPieceIsFetchedOnceForTheBlockBeforeIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newRigOn(t, 64*mib, nil, func(g *rig) source.Blob { return across{inPieces{g.blob, 4 * mib}} })
		f := g.start(8*mib, 4*kib)
		c := g.blob.next(t)
		if c.Range != (ondemand.Range{Off: 4*mib + 4*kib, Len: 8*mib - 4*kib}) {
			t.Fatalf("request %v", c.Range)
		}
		c.give(4 * mib)
		f.cancel() // as the table does for requests that have ended
		synctest.Wait()
		if c.isClosed() {
			t.Error("the piece behind the block is thrown away")
		}
		c.give(4 * mib)
		if err := f.ended(); err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		g.read(8*mib, 4*mib)
		g.blob.none(t)
		g.cache.check(t)
		g.Close()
	})
}
