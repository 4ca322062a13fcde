package auth_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci/auth"
	"github.com/lacunafs/lacuna/internal/source/ranged"
)

// tokenServer counts and gives tokens.
type tokenServer struct {
	*httptest.Server
	asked  atomic.Int64
	status atomic.Int64 // to answer with; 0: 200
	last   atomic.Pointer[http.Request]
	gate   chan struct{} // not nil: answers wait for it
}

func newTokenServer(t *testing.T) *tokenServer {
	s := &tokenServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		n := s.asked.Add(1)
		if err := q.ParseForm(); err != nil {
			t.Error(err)
		}
		s.last.Store(q)
		if s.gate != nil {
			<-s.gate
		}
		if status := s.status.Load(); status != 0 {
			w.WriteHeader(int(status))
			return
		}
		if _, err := fmt.Fprintf(w, `{"access_token":"token%d","expires_in":100}`, n); err != nil {
			t.Error(err)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

// clock is a time that tests move.
type clock struct{ now atomic.Int64 }

func (c *clock) Now() time.Time          { return time.Unix(1e9, c.now.Load()) }
func (c *clock) advance(d time.Duration) { c.now.Add(int64(d)) }

func newSession(t *testing.T, c *clock, k auth.Keyring) *auth.Session {
	transport := ranged.NewTransport(ranged.Connections{})
	life, end := context.WithCancel(context.Background())
	s := &auth.Session{
		Registry: "registry.test", Repository: "a/b", Keyring: k, UserAgent: "test", Clock: c.Now,
		Sender:   ranged.Sender{Transport: transport, Stall: 10 * time.Second, Life: life},
		Insecure: func() bool { return true },
	}
	t.Cleanup(func() {
		end()
		s.Close()
		transport.CloseIdleConnections()
	})
	return s
}

func refusal(status int, challenge string) *http.Response {
	h := http.Header{}
	if challenge != "" {
		h.Set("WWW-Authenticate", challenge)
	}
	return &http.Response{StatusCode: status, Header: h}
}

func (s *tokenServer) challenge() string { return fmt.Sprintf("Bearer realm=%q", s.URL+"/t?x=y") }

func mustRenew(t *testing.T, s *auth.Session, number int, resp *http.Response, want bool) {
	t.Helper()
	if again, err := s.Renew(t.Context(), number, resp); err != nil || again != want {
		t.Fatalf("renew: %v, %v", again, err)
	}
}

func mustHave(t *testing.T, s *auth.Session, want string) (number int) {
	t.Helper()
	header, number, err := s.Authorization(t.Context())
	if err != nil || header != want {
		t.Fatalf("authorization %q, %v, want %q", header, err, want)
	}
	return number
}

// Whatever the registry says that a request needs, a token is asked for with the actions
// of the session.
func TestTokensAreForAllActions(t *testing.T) {
	for asked, want := range map[string]string{
		"": "repository:a/b:pull,push", "repository:a/b:pull": "repository:a/b:pull,push",
		"repository:host:5000/b:push,pull": "repository:host:5000/b:push,pull", "registry:catalog:*": "registry:catalog:*",
		"repository:c:pull registry:x:y": "repository:c:pull,push registry:x:y", "x": "x", "repository": "repository",
	} {
		server := newTokenServer(t)
		s := newSession(t, &clock{}, auth.Keyring{})
		s.Actions = []string{"pull", "push"}
		challenge := server.challenge()
		if asked != "" {
			challenge += fmt.Sprintf(",scope=%q", asked)
		}
		mustRenew(t, s, mustHave(t, s, ""), refusal(401, challenge), true)
		if got := strings.Join(server.last.Load().URL.Query()["scope"], " "); got != want {
			t.Errorf("%q: asked for %q, want %q", asked, got, want)
		}
	}
}

func TestTokensAreRenewedBeforeTheyExpire(t *testing.T) {
	server, now := newTokenServer(t), &clock{}
	s := newSession(t, now, auth.Keyring{})
	mustRenew(t, s, mustHave(t, s, ""), refusal(401, server.challenge()), true)
	s.Accepted(mustHave(t, s, "Bearer token1"))
	q := server.last.Load().URL.Query()
	if q.Get("scope") != "repository:a/b:pull" || q.Get("x") != "y" {
		t.Errorf("asked for %v", q)
	}
	now.advance(80 * time.Second)
	mustHave(t, s, "Bearer token1")
	now.advance(11 * time.Second)
	mustHave(t, s, "Bearer token2")
	// Where that fails, the registry may judge the old one.
	server.status.Store(500)
	now.advance(100 * time.Second)
	mustHave(t, s, "Bearer token2")
	asked := server.asked.Load()
	mustHave(t, s, "Bearer token2") // and not again at once
	if server.asked.Load() != asked {
		t.Error("no pause after a failure")
	}
}

func TestRenewalsPauseWhereTheyDoNotHelp(t *testing.T) {
	server, now := newTokenServer(t), &clock{}
	s := newSession(t, now, auth.Keyring{})
	mustRenew(t, s, 0, refusal(401, server.challenge()), true)
	for number := 1; number < 6; number++ { // each new token is refused, too
		mustRenew(t, s, number, refusal(401, server.challenge()), true)
		mustRenew(t, s, number+1, refusal(401, server.challenge()), false)
		mustRenew(t, s, number+1, refusal(403, ""), false)
		now.advance(time.Duration(1<<(number-1)) * time.Second)
	}
	if n := server.asked.Load(); n != 6 {
		t.Errorf("%d requests", n)
	}
	// A token that was taken and expires is renewed without a pause.
	s.Accepted(6)
	mustRenew(t, s, 6, refusal(401, server.challenge()), true)
	s.Accepted(7)
	mustRenew(t, s, 7, refusal(401, server.challenge()), true)
}

// A token that is refused as soon as it is issued may be good a little later; it
// may also be all that there is.
func TestPatienceWithNewTokens(t *testing.T) {
	server, now := newTokenServer(t), &clock{}
	refused := func() *http.Response { return refusal(401, server.challenge()) }
	for _, known := range []bool{false, true} {
		s := newSession(t, now, auth.Keyring{})
		mustRenew(t, s, 0, refused(), true)
		number, limit := 1, 6*time.Second
		if known {
			s.Accepted(1)
			mustRenew(t, s, 1, refused(), true)
			number, limit = 2, 25*time.Second
		}
		before, waited := server.asked.Load(), time.Duration(0)
		for {
			wait := s.Patience(number, refused())
			if wait == 0 {
				break
			}
			if again := s.Patience(number, refused()); again != wait { // another reader's
				t.Errorf("pauses %v and %v", wait, again)
			}
			mustRenew(t, s, number, refused(), false)
			waited += wait
			now.advance(wait)
			mustRenew(t, s, number, refused(), true)
			number++
		}
		asked := server.asked.Load() - before
		t.Logf("known %t: %d tokens in %v", known, asked, waited)
		if waited < time.Second || waited > limit || asked > 6 {
			t.Errorf("known %t: %d tokens in %v", known, asked, waited)
		}
		if s.Patience(number, refused()) != 0 {
			t.Error("it begins again")
		}
		// The next one may be good.
		now.advance(time.Minute)
		mustRenew(t, s, number, refused(), true)
		s.Accepted(number + 1)
		mustRenew(t, s, number+1, refused(), true)
		if s.Patience(number+2, refused()) == 0 {
			t.Error("no patience with the next trouble")
		}
	}
}

func TestNoPatienceWithWhatStaysAsItIs(t *testing.T) {
	server := newTokenServer(t)
	s := newSession(t, &clock{}, auth.Keyring{})
	mustRenew(t, s, 0, refusal(401, server.challenge()), true)
	for _, resp := range []*http.Response{
		refusal(403, ""), refusal(401, server.challenge()+`,error="insufficient_scope"`), refusal(401, "Bearer ="),
	} {
		if wait := s.Patience(1, resp); wait != 0 {
			t.Errorf("%d %v: %v", resp.StatusCode, resp.Header, wait)
		}
	}
	// What is the same each time.
	for text, challenge := range map[string]string{
		`{"auths":{"registry.test":{"registrytoken":"r"}}}`:           server.challenge(),
		`{"auths":{"registry.test":{"username":"u","password":"p"}}}`: "Basic realm=x",
	} {
		s := newSession(t, &clock{}, keyring(t, text))
		mustRenew(t, s, 0, refusal(401, challenge), true)
		if wait := s.Patience(1, refusal(401, challenge)); wait != 0 {
			t.Errorf("%s: %v", text, wait)
		}
	}
}

func TestFailedRenewalIsEverybodys(t *testing.T) {
	server, now := newTokenServer(t), &clock{}
	s := newSession(t, now, auth.Keyring{})
	server.status.Store(503)
	for range 3 {
		_, err := s.Renew(t.Context(), 0, refusal(401, server.challenge()))
		if !errors.Is(err, source.ErrBusy) || !source.Temporary(err) {
			t.Fatal(err)
		}
	}
	if _, err := s.Renew(t.Context(), 0, refusal(401, server.challenge())); source.RetryDelay(err) <= 0 || server.asked.Load() != 1 {
		t.Errorf("%d requests, error %v asks for %v", server.asked.Load(), err, source.RetryDelay(err))
	}
	server.status.Store(0)
	now.advance(2 * time.Second)
	mustRenew(t, s, 0, refusal(401, server.challenge()), true)
}

// Who waits and goes away ends nothing for the others.
func TestOneRenewalForAll(t *testing.T) {
	server, now := newTokenServer(t), &clock{}
	server.gate = make(chan struct{})
	s := newSession(t, now, auth.Keyring{})
	ctx, cancel := context.WithCancel(t.Context())
	gone := make(chan error)
	go func() {
		_, err := s.Renew(ctx, 0, refusal(401, server.challenge()))
		gone <- err
	}()
	cancel()
	if err := <-gone; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	var all sync.WaitGroup
	for range 50 {
		all.Go(func() {
			if again, err := s.Renew(t.Context(), 0, refusal(401, server.challenge())); err != nil || !again {
				t.Error(again, err)
			}
		})
	}
	close(server.gate)
	all.Wait()
	if n := server.asked.Load(); n != 1 {
		t.Errorf("%d requests", n)
	}
}

func TestIdentityToken(t *testing.T) {
	server := newTokenServer(t)
	k := keyring(t, `{"auths":{"registry.test":{"identitytoken":"i"}}}`)
	s := newSession(t, &clock{}, k)
	mustRenew(t, s, 0, refusal(401, server.challenge()+`,service="s"`), true)
	q := server.last.Load()
	if q.Method != http.MethodPost || q.PostForm.Get("refresh_token") != "i" || q.PostForm.Get("service") != "s" ||
		q.PostForm.Get("grant_type") != "refresh_token" || q.PostForm.Get("client_id") == "" {
		t.Errorf("%s %v", q.Method, q.PostForm)
	}
	// A server without OAuth 2.
	server.status.Store(405)
	s = newSession(t, &clock{}, k)
	if _, err := s.Renew(t.Context(), 0, refusal(401, server.challenge())); err == nil || server.last.Load().Method != http.MethodGet {
		t.Errorf("%s, %v", server.last.Load().Method, err)
	}
}

func TestRealmsThatAreRefused(t *testing.T) {
	for _, realm := range []string{"ftp://a.test/", "a.test", "", "http://169.254.169.254/latest", "http://[fe80::1]/", "http://me:pw@a.test/"} {
		s := newSession(t, &clock{}, auth.Keyring{})
		again, err := s.Renew(t.Context(), 0, refusal(401, fmt.Sprintf("Bearer realm=%q", realm)))
		if err == nil && again || source.Temporary(err) {
			t.Errorf("%q: %v, %v", realm, again, err)
		}
	}
	s := newSession(t, &clock{}, auth.Keyring{})
	s.Insecure = func() bool { return false }
	if _, err := s.Renew(t.Context(), 0, refusal(401, `Bearer realm="http://a.test/"`)); !errors.Is(err, source.ErrDenied) {
		t.Errorf("no encryption: %v", err)
	}
}

func TestAnswersThatAreNoTokens(t *testing.T) {
	for _, text := range []string{"", "S3CRET", `{}`, `{"token":"S3\nCRET"}`, `{"token":"ü"}`, `{"token":`} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			if _, err := w.Write([]byte(text)); err != nil {
				t.Error(err)
			}
		}))
		s := newSession(t, &clock{}, auth.Keyring{})
		_, err := s.Renew(t.Context(), 0, refusal(401, fmt.Sprintf("Bearer realm=%q", server.URL)))
		if !errors.Is(err, source.ErrNotBytes) || strings.Contains(err.Error(), "CRET") {
			t.Errorf("%q: %v", text, err)
		}
		server.Close()
	}
}

func TestPasswordsGoToTheirOwnServerOnly(t *testing.T) {
	other := newTokenServer(t)
	first := httptest.NewServer(http.RedirectHandler(other.URL, http.StatusFound))
	t.Cleanup(first.Close)
	s := newSession(t, &clock{}, keyring(t, `{"auths":{"registry.test":{"username":"u","password":"p"}}}`))
	mustRenew(t, s, 0, refusal(401, fmt.Sprintf("Bearer realm=%q", first.URL)), true)
	if got := other.last.Load().Header.Get("Authorization"); got != "" {
		t.Errorf("the other server got %q", got)
	}
}
