// Package retry wraps a blob so that temporary errors are tried again.
//
// A range is asked for anew from the byte at which it broke, so what was
// delivered is neither read nor delivered twice. A sequential blob cannot do that:
// there the whole is asked for again and what was delivered already is thrown
// away. Both are right where the blob is bound to a validator: the second reading
// has the same bytes or fails. Where the source has none, only bytes can tell:
// of a sequential blob all that was delivered is compared with the second
// reading by a hash, of another one the last few KiB, asked for once more. Other
// bytes are source.ErrChanged. That such a source changed elsewhere goes unseen.
//
// Only errors that call themselves temporary (source.Temporary) are tried
// again. The budget is for one trouble, not for a whole body: once enough bytes have
// come since the last failure, the next one starts afresh.
package retry

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"sync"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
)

// Policy says how often and how long. The zero value is good.
type Policy struct {
	// Attempts is how many requests in a row may fail; 0: 8.
	Attempts int
	// Budget bounds the time from the first failure in a row to the last
	// attempt's start; 0: 1 minute.
	Budget time.Duration
	// First is the wait after the first failure, doubled with each further
	// one; 0: 100 ms. The wait is drawn from the upper half of that.
	First time.Duration
	// Longest bounds the wait; 0: 10 s. A source that asks for a longer one
	// (Retry-After) gets it, up to what is left of the budget.
	Longest time.Duration
	// Failed is called before each wait, possibly concurrently; nil: not.
	Failed func(attempt int, err error, wait time.Duration)
}

func (p Policy) withDefaults() Policy {
	if p.Attempts <= 0 {
		p.Attempts = 8
	}
	if p.Budget <= 0 {
		p.Budget = time.Minute
	}
	if p.First <= 0 {
		p.First = 100 * time.Millisecond
	}
	if p.Longest <= 0 {
		p.Longest = 10 * time.Second
	}
	return p
}

// Do calls attempt until it succeeds, fails for good, or the policy gives up.
// attempt must be idempotent.
func Do(ctx context.Context, p Policy, attempt func() error) error {
	r := &reader{ctx: ctx, blob: &blob{policy: p.withDefaults()}}
	for {
		err := attempt()
		if err == nil {
			return nil
		}
		if err := r.wait(err); err != nil {
			return err
		}
	}
}

// progress is how many bytes end a trouble: fewer, and a source that breaks
// after each byte would be asked a billion times.
const progress = 64 << 10

type blob struct {
	source.Wrapper
	policy Policy
}

// Wrap returns b with retries. Wrapping twice is no mistake, and tries no
// oftener than the product.
func Wrap(b source.Blob, p Policy) source.Blob {
	return &blob{source.Wrapper{Blob: b}, p.withDefaults()}
}

// ReadRange is idempotent, as the wrapped blob's is. It returns once a request
// has been accepted or the policy gives up; the reader goes on alike.
func (b *blob) ReadRange(ctx context.Context, off, n int64) (io.ReadCloser, error) {
	if err := source.CheckRange(b, off, n); err != nil {
		return nil, fmt.Errorf("read with retries: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	r := &reader{ctx: ctx, cancel: cancel, blob: b, off: off, n: n}
	r.seen.unbound = source.IdentityOf(b).Validator == ""
	r.seen.whole = source.IsSequential(b)
	r.broken = r.request()
	if err := r.mend(); err != nil {
		cancel()
		return nil, err
	}
	return r, nil
}

// reader delivers one range over as many requests as it takes.
type reader struct {
	ctx    context.Context
	cancel context.CancelFunc
	blob   *blob
	off, n int64

	mu     sync.Mutex // held through Read; Close takes it after cancel
	seen   delivered
	body   io.ReadCloser // of the request in progress, or nil
	from   io.ReadCloser // that gave the last byte, also when it is closed; nil: none did
	asked  int           // requests made
	gave   int           // which of them gave the last byte
	joined bool          // what was delivered is of several
	got    int64         // bytes delivered
	broken error         // how the latest request ended, or nil
	err    error         // what every later Read returns

	failures int       // in a row
	since    time.Time // of the first of them
	failedAt int64     // got at the latest of them
}

// request asks for what is left of the range.
func (r *reader) request() error {
	r.asked++
	again := r.seen.overlap(r.got)
	from := r.got - again
	body, err := r.blob.Blob.ReadRange(r.ctx, r.off+from, r.n-from)
	if err != nil {
		return err
	}
	if err := r.seen.pass(body, again); err != nil {
		return errors.Join(err, body.Close())
	}
	r.body = body
	return nil
}

// short turns the end of a body before its time into what it is.
func short(err error, got, want int64) error {
	if errors.Is(err, io.EOF) {
		return &source.ShortError{Got: got, Want: want}
	}
	return err
}

// mend makes requests until one is accepted, or returns the error to give up with.
func (r *reader) mend() error {
	for r.broken != nil {
		if err := r.wait(r.broken); err != nil {
			return err
		}
		r.broken = r.request()
	}
	return nil
}

// wait waits until there may be another attempt after err, or returns the error
// to give up with.
func (r *reader) wait(err error) error {
	p := r.blob.policy
	if end := r.ctx.Err(); end != nil && !errors.Is(err, end) {
		return fmt.Errorf("%w: %w", end, err)
	} else if end != nil || !source.Temporary(err) {
		return err
	}
	now := time.Now()
	if r.failures == 0 || r.got-r.failedAt >= progress {
		r.failures, r.since, r.failedAt = 0, now, r.got
	}
	r.failures++
	left := p.Budget - now.Sub(r.since)
	if r.failures >= p.Attempts || left <= 0 {
		return fmt.Errorf("given up after %d attempts in %v: %w", r.failures, now.Sub(r.since).Round(time.Millisecond), err)
	}
	wait := min(max(r.backOff(), source.RetryDelay(err)), left)
	if p.Failed != nil {
		p.Failed(r.failures, err, wait)
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-r.ctx.Done():
		return fmt.Errorf("%w while waiting to try again after: %w", r.ctx.Err(), err)
	}
}

func (r *reader) backOff() time.Duration {
	p := r.blob.policy
	wait := p.First
	for i := 1; i < r.failures && wait < p.Longest; i++ {
		wait *= 2
	}
	wait = min(wait, p.Longest)
	return wait - rand.N(wait/2+1)
}

func (r *reader) Read(p []byte) (int, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for r.err == nil {
		if r.err = r.mend(); r.err != nil {
			break
		}
		n, err := r.body.Read(p)
		r.seen.note(p[:n])
		r.got += int64(n)
		if n > 0 && r.gave != r.asked {
			r.joined = r.gave > 0
			r.from, r.gave = r.body, r.asked
		}
		switch done := r.got == r.n; {
		case done && (err == nil || errors.Is(err, io.EOF) || source.Temporary(err)):
			r.err = io.EOF // what breaks behind the last byte breaks nothing
		case err != nil:
			err = short(err, r.got, r.n)
			r.broken = errors.Join(err, r.body.Close())
			r.body = nil
		}
		if n > 0 || err == nil {
			return n, nil
		}
	}
	return 0, r.err
}

// Refute implements source.Refutable. Of several answers that were joined nobody can
// tell which was wrong; asked for anew in one piece it can be told.
func (r *reader) Refute() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.joined || source.Refute(r.from)
}

// Close ends a Read in progress, also one that waits for its next attempt.
func (r *reader) Close() error {
	r.cancel()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.err = fmt.Errorf("read range: %w", os.ErrClosed)
	if r.body == nil {
		return nil
	}
	body := r.body
	r.body = nil
	return body.Close()
}
