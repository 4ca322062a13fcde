// Package auth logs in at a registry: by basic authentication, or with a token
// of the token server that the registry names, for which credentials of docker's
// or podman's configuration are used where there are any.
//
// What is shown to the registry expires while an image is in use. A Session
// renews it when it is about to expire or the registry refuses it: once for all
// readers that wait, with credentials looked up anew, and with growing pauses where
// renewing does not help.
//
// go-containerregistry's transport is not used for this: it keeps the
// credentials that it began with, has no single renewal for all, accepts no token
// server with a private address, and its configuration files come from the environment.
package auth

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/ranged"
)

// renewTime bounds one renewal: a credential program and one or two requests.
const renewTime = ProgramTime + 30*time.Second

// The pauses between renewals that do not help. While somebody waits for one that
// helps they grow to waitingPause, and then to longestPause.
const (
	firstPause   = time.Second
	waitingPause = 10 * time.Second
	longestPause = time.Minute
)

// How long tokens that are refused as soon as they are issued may be those of
// servers that are not of one mind yet, such as for a new key or a clock that is
// late: known where a token was taken before, and fresh where none ever was. After
// that they mean that access is denied.
const (
	knownPatience = 20 * time.Second
	freshPatience = 5 * time.Second
)

// Session is how one repository of one host is spoken to. Its fields are set
// before its first use.
type Session struct {
	Registry   string // host with optional port, as credentials name it
	Repository string
	Actions    []string // that tokens are for besides what the registry asks for; nil: pull
	Keyring    Keyring
	UserAgent  string
	Sender     ranged.Sender // its Life ends renewals
	// Insecure tells whether the registry is spoken to without encryption.
	Insecure func() bool
	// Clock is for tests; nil: time.Now.
	Clock func() time.Time

	renewals sync.WaitGroup

	mu        sync.Mutex
	header    string // Authorization to send; empty: none
	number    int    // of header; 0: none has been asked for
	issued    bool   // header is a token server's: another one may be better
	accepted  int    // the latest number that the registry took
	expires   time.Time
	challenge Challenge // what the registry asked for last
	running   *renewal  // or nil
	notBefore time.Time // of the next renewal, where renewing may not help
	pause     time.Duration
	refused   time.Time // when the first of the tokens in a row was that were never taken; zero: the latest was taken
	failed    error     // of the latest renewal; nil: it went well
	closed    bool
}

// renewal is one in progress.
type renewal struct {
	done chan struct{}
	err  error
}

func (s *Session) now() time.Time {
	if s.Clock != nil {
		return s.Clock()
	}
	return time.Now()
}

// Close returns when no renewal is in progress any more; the Sender's Life has
// ended before. There are no renewals from then on.
func (s *Session) Close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.renewals.Wait()
}

// Authorization is the header to send, empty for none, and its number. It
// renews what has expired; where that fails the registry may judge.
func (s *Session) Authorization(ctx context.Context) (header string, number int, err error) {
	s.mu.Lock()
	stale := !s.expires.IsZero() && !s.now().Before(s.expires) && !s.now().Before(s.notBefore)
	var r *renewal
	if stale {
		r = s.renewLocked()
	}
	header, number = s.header, s.number
	s.mu.Unlock()
	if r == nil {
		return header, number, nil
	}
	if err := s.wait(ctx, r); err != nil && (ctx.Err() != nil || errors.Is(err, os.ErrClosed)) {
		return "", 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.header, s.number, nil
}

// Accepted tells that the registry took the header of the given number.
func (s *Session) Accepted(number int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if number > s.accepted {
		s.accepted, s.pause, s.refused = number, 0, time.Time{}
	}
}

// Renew is called when the registry refuses the header of the given number
// with resp, 401 or 403. It returns true where there is another header now, worth
// another request, and false where there is not, so that resp is the answer.
func (s *Session) Renew(ctx context.Context, number int, resp *http.Response) (bool, error) {
	s.mu.Lock()
	if s.number != number {
		s.mu.Unlock()
		return true, nil // somebody else was first
	}
	if s.running == nil {
		ok, err := s.learnLocked(resp)
		if err == nil && ok {
			ok, err = s.mayLocked(number, resp.StatusCode)
		}
		if err != nil || !ok {
			s.mu.Unlock()
			return false, err
		}
	}
	r := s.renewLocked()
	s.mu.Unlock()
	if err := s.wait(ctx, r); err != nil {
		return false, err
	}
	return true, nil
}

// Patience is called when the registry refuses the header of the given number with
// resp, and Renew does not help. It is how long to wait before the next request, which
// a new token may go with, and 0 where resp is the answer: it denies access, or has
// denied it to new tokens for long enough.
func (s *Session) Patience(number int, resp *http.Response) time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if resp.StatusCode != http.StatusUnauthorized || !s.issued {
		return 0 // it knows who asks, or would be shown the same again
	}
	known, err := s.learnLocked(resp)
	switch {
	case err != nil || !known || s.challenge.Params["error"] == "insufficient_scope": // RFC 6750 section 3.1
		return 0
	case s.number != number || s.accepted == number:
		return firstPause / 10 // it has been renewed, or may be at once
	}
	now := s.now()
	if s.refused.IsZero() {
		s.refused = now
	}
	if !now.Before(s.notBefore) {
		s.pauseLocked(longestPause)
	}
	patience := freshPatience
	if s.accepted > 0 {
		patience = knownPatience
	}
	if s.notBefore.Sub(s.refused) > patience {
		return 0
	}
	return s.notBefore.Sub(now)
}

// learnLocked remembers what the registry asks for and tells whether that is known.
func (s *Session) learnLocked(resp *http.Response) (bool, error) {
	all, err := ParseChallenges(resp.Header.Values("WWW-Authenticate"))
	if err != nil {
		return false, fmt.Errorf("%w: %s: %w", source.ErrDenied, s.Registry, err)
	}
	for _, scheme := range []string{"bearer", "basic"} {
		for _, c := range all {
			if c.Scheme == scheme && (scheme == "basic" || c.Params["realm"] != "") {
				s.challenge = c
				return true, nil
			}
		}
	}
	// A 403 has no challenge: the one before it is what the token was for.
	return s.challenge.Scheme != "", nil
}

// mayLocked tells whether there may be a renewal now. A token that was good and
// is not any more has expired: that needs no pause. Otherwise renewing may not help.
func (s *Session) mayLocked(number, status int) (bool, error) {
	now := s.now()
	expired := status == http.StatusUnauthorized && (number == 0 || s.accepted == number)
	if now.Before(s.notBefore) && (!expired || s.failed != nil) {
		if s.failed != nil {
			return false, &pausedError{s.failed, s.notBefore.Sub(now)}
		}
		return false, nil
	}
	if !expired {
		longest := longestPause
		if !s.refused.IsZero() && now.Sub(s.refused) < knownPatience {
			longest = waitingPause
		}
		s.pauseLocked(longest)
	}
	return true, nil
}

func (s *Session) pauseLocked(longest time.Duration) {
	s.pause = min(max(2*s.pause, firstPause), longest)
	s.notBefore = s.now().Add(s.pause)
}

// pausedError is a failure of a renewal for those who come before the next one.
type pausedError struct {
	err  error
	left time.Duration
}

func (e *pausedError) Error() string             { return e.err.Error() }
func (e *pausedError) Unwrap() error             { return e.err }
func (e *pausedError) Temporary() bool           { return source.Temporary(e.err) }
func (e *pausedError) RetryDelay() time.Duration { return e.left }

// renewLocked joins the renewal in progress or starts one. It is nobody's own:
// a reader that goes away does not end it for the others.
func (s *Session) renewLocked() *renewal {
	if s.running != nil {
		return s.running
	}
	r := &renewal{done: make(chan struct{})}
	if s.closed {
		r.err = os.ErrClosed
		close(r.done)
		return r
	}
	s.running = r
	challenge := s.challenge
	s.renewals.Go(func() {
		ctx, cancel := context.WithTimeout(s.Sender.Life, renewTime)
		defer cancel()
		header, issued, life, err := s.renew(ctx, challenge)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.failed = err; err == nil {
			s.header, s.issued, s.expires = header, issued, time.Time{}
			s.number++
			if life > 0 {
				s.expires = s.now().Add(life)
			}
		} else if source.Temporary(err) {
			s.pauseLocked(waitingPause)
		} else {
			s.pauseLocked(longestPause)
		}
		r.err, s.running = err, nil
		close(r.done)
	})
	return r
}

// renew returns the header to send from now on, whether a token server issued it, and
// for how long it is good; 0: it is not said.
func (s *Session) renew(ctx context.Context, ch Challenge) (header string, issued bool, life time.Duration, err error) {
	c, err := s.Keyring.Look(ctx, s.Registry, s.Repository)
	if err != nil {
		return "", false, 0, fmt.Errorf("log in at %s: %w", s.Registry, err)
	}
	switch {
	case c.RegistryToken != "":
		return "Bearer " + c.RegistryToken, false, 0, nil
	case ch.Scheme == "basic" && c.Username == "":
		return "", false, 0, fmt.Errorf("log in at %s: %w: it wants a user name and a password, and there are none for it", s.Registry, source.ErrDenied)
	case ch.Scheme == "basic":
		return basic(c), false, 0, nil
	}
	t, err := s.fetch(ctx, ch, c)
	if err != nil {
		return "", false, 0, fmt.Errorf("get a token for %s: %w", s.Registry, err)
	}
	return "Bearer " + t.Token, true, t.life(), nil
}

func (s *Session) wait(ctx context.Context, r *renewal) error {
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.Sender.Life.Done():
		return os.ErrClosed
	}
}
