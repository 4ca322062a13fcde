// Package ocitest has what tests of images share: a registry that asks for
// logins, redirects to signed addresses and misbehaves as it is told to, the real
// registry of the CNCF, and images to push to them.
package ocitest

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
)

// Registry is a registry on loopback. Without being told otherwise it serves
// everybody.
//
// A login is by tokens of a token server at another address, as the large
// registries have it, or by basic authentication. Blobs can be redirected to a third
// address with a signature in it.
type Registry struct {
	front, tokens, cdn *httptest.Server
	content            http.Handler

	mu       sync.Mutex
	user     string // user:password; empty: everybody gets a token
	wants    string // "", "Basic" or "Bearer"
	refusal  Refusal
	epoch    int // which tokens are valid
	left     int // requests until the tokens expire; 0: they do not
	uses     int
	life     int // expires_in, seconds
	bad      int // how many of the next tokens are not valid
	ill      int // how many of the next requests for tokens get a 503
	signed   int // which signatures are valid; 0: no redirects
	deny     int // how many of the next requests get a 403
	lost     bool
	override http.Handler
	// overridden is the digest of the blob that override has.
	overridden string
	log        []Request
}

// Request is one line of the registry's log.
type Request struct {
	Server string // "registry", "token" or "cdn"
	Method string
	Path   string
	Query  url.Values
	Header http.Header
	Status int
}

// New starts a registry that holds its content in memory.
func New(t testing.TB) *Registry {
	return NewFor(t, registry.New(registry.Logger(log.New(io.Discard, "", 0))))
}

// NewFor starts a registry in front of content.
func NewFor(t testing.TB, content http.Handler) *Registry {
	r := &Registry{content: content}
	r.front = httptest.NewServer(r.logged("registry", r.serve))
	r.tokens = httptest.NewServer(r.logged("token", r.serveToken))
	r.cdn = httptest.NewServer(r.logged("cdn", r.serveSigned))
	t.Cleanup(func() {
		for _, s := range []*httptest.Server{r.front, r.tokens, r.cdn} {
			s.CloseClientConnections()
			s.Close()
		}
	})
	return r
}

// Host is the registry's name in references.
func (r *Registry) Host() string { return strings.TrimPrefix(r.front.URL, "http://") }

// Stop ends all servers: nobody answers from then on.
func (r *Registry) Stop() {
	for _, s := range []*httptest.Server{r.front, r.tokens, r.cdn} {
		s.CloseClientConnections()
		s.Close()
	}
}

func (r *Registry) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// WantToken asks for a token. Who is user with password gets one; empty: everybody.
func (r *Registry) WantToken(user, password string) {
	r.set(func() { r.wants, r.user = "Bearer", login(user, password) })
}

// WantBasic asks for basic authentication.
func (r *Registry) WantBasic(user, password string) {
	r.set(func() { r.wants, r.user = "Basic", login(user, password) })
}

// Refusal is how a registry tells that a token is not for what is asked: one that was
// asked for with the action pull alone is not for pushing.
type Refusal int

// The refusals.
const (
	// WithScope is 401, and a challenge that says what a token is needed for.
	WithScope Refusal = iota
	// Insufficient is the same, with the error of RFC 6750 section 3.1.
	Insufficient
	// WithoutScope is 401, and a challenge that does not say it.
	WithoutScope
	// Forbidden is 403, where there is a token.
	Forbidden
)

// RefuseBy is how tokens are refused.
func (r *Registry) RefuseBy(how Refusal) { r.set(func() { r.refusal = how }) }

func login(user, password string) string {
	if user == "" {
		return ""
	}
	return user + ":" + password
}

// ExpireTokens makes every token that was given out refused.
func (r *Registry) ExpireTokens() { r.set(func() { r.epoch++ }) }

// ExpireTokensAfter makes tokens expire after each n requests; 0: not.
func (r *Registry) ExpireTokensAfter(n int) { r.set(func() { r.left, r.uses = n, 0 }) }

// TokenLife is how long tokens say that they live, in seconds.
func (r *Registry) TokenLife(seconds int) { r.set(func() { r.life = seconds }) }

// BadTokens makes the next n tokens refused.
func (r *Registry) BadTokens(n int) { r.set(func() { r.bad = n }) }

// TokenServerIll answers the next n requests for tokens with 503.
func (r *Registry) TokenServerIll(n int) { r.set(func() { r.ill = n }) }

// RedirectBlobs redirects to signed addresses.
func (r *Registry) RedirectBlobs() { r.set(func() { r.signed++ }) }

// ExpireAddresses makes every signed address that was given out refused.
func (r *Registry) ExpireAddresses() { r.set(func() { r.signed++ }) }

// Deny answers the next n requests with 403.
func (r *Registry) Deny(n int) { r.set(func() { r.deny = n }) }

// LoseBlobs makes there be none.
func (r *Registry) LoseBlobs() { r.set(func() { r.lost = true }) }

// Blob answers GETs of the blob that has the bytes of data, in place of the content.
func (r *Registry) Blob(data []byte, h http.Handler) {
	r.set(func() { r.override, r.overridden = h, fmt.Sprintf("sha256:%x", sha256.Sum256(data)) })
}

// Log is the requests so far.
func (r *Registry) Log() []Request {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.log)
}

// Count is how many requests so far match.
func (r *Registry) Count(match func(Request) bool) (n int) {
	for _, q := range r.Log() {
		if match(q) {
			n++
		}
	}
	return n
}

// statusWriter notes the status of an answer.
type statusWriter struct {
	http.ResponseWriter
	status int
}

func (w *statusWriter) WriteHeader(status int) {
	w.status = status
	w.ResponseWriter.WriteHeader(status)
}

func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (r *Registry) logged(name string, serve http.HandlerFunc) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		sw := &statusWriter{w, http.StatusOK}
		defer func() {
			r.set(func() {
				r.log = append(r.log, Request{name, q.Method, q.URL.Path, q.URL.Query(), q.Header.Clone(), sw.status})
			})
		}()
		serve(sw, q)
	})
}

func (r *Registry) serve(w http.ResponseWriter, q *http.Request) {
	if !r.allowed(w, q) {
		return
	}
	r.mu.Lock()
	signed := r.signed
	r.mu.Unlock()
	if isBlob(q) && signed > 0 {
		w.Header().Set("Location", r.cdn.URL+q.URL.Path+"?signature=s3cret"+strconv.Itoa(signed))
		w.WriteHeader(http.StatusTemporaryRedirect)
		return
	}
	r.answer(w, q)
}

func (r *Registry) answer(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	override, d, lost := r.override, r.overridden, r.lost
	r.mu.Unlock()
	if lost && isBlob(q) {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	if override != nil && isBlob(q) && strings.HasSuffix(q.URL.Path, d) {
		override.ServeHTTP(w, q)
		return
	}
	r.content.ServeHTTP(w, q)
}

func isBlob(q *http.Request) bool {
	return q.Method == http.MethodGet && strings.Contains(q.URL.Path, "/blobs/sha256:")
}

// allowed answers a request that is not allowed.
func (r *Registry) allowed(w http.ResponseWriter, q *http.Request) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.deny > 0 {
		r.deny--
		w.WriteHeader(http.StatusForbidden)
		return false
	}
	got := q.Header.Get("Authorization")
	switch r.wants {
	case "":
		return true
	case "Basic":
		if got == "Basic "+base64.StdEncoding.EncodeToString([]byte(r.user)) {
			return true
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
	default:
		if r.left > 0 && got != "" {
			if r.uses++; r.uses > r.left {
				r.uses = 0
				r.epoch++
			}
		}
		if r.goodLocked(got, q) {
			return true
		}
		if r.refusal == Forbidden && got != "" {
			w.WriteHeader(http.StatusForbidden)
			return false
		}
		challenge := fmt.Sprintf(`Bearer realm="%s/token",service="test"`, r.tokens.URL)
		if r.refusal != WithoutScope {
			challenge += fmt.Sprintf(`,scope="repository:%s:%s"`, repository(q.URL.Path), needs(q))
		}
		if r.refusal == Insufficient && got != "" {
			challenge += `,error="insufficient_scope"`
		}
		w.Header().Set("WWW-Authenticate", challenge)
	}
	w.WriteHeader(http.StatusUnauthorized)
	return false
}

func repository(path string) string {
	path = strings.TrimPrefix(path, "/v2/")
	for _, part := range []string{"/blobs/", "/manifests/"} {
		if before, _, ok := strings.Cut(path, part); ok {
			return before
		}
	}
	return path
}

// needs is what a token must be for.
func needs(q *http.Request) string {
	if q.Method == http.MethodGet || q.Method == http.MethodHead {
		return "pull"
	}
	return "pull,push"
}

// goodLocked tells whether a token is one for what is asked.
func (r *Registry) goodLocked(authorization string, q *http.Request) bool {
	given, ok := strings.CutPrefix(authorization, "Bearer ")
	return ok && (given == r.tokenLocked("pull,push") || given == r.tokenLocked("pull") && needs(q) == "pull")
}

// tokenLocked is the token for actions.
func (r *Registry) tokenLocked(actions string) string {
	kind := "read"
	if strings.Contains(actions, "push") {
		kind = "write"
	}
	return fmt.Sprintf("t0ken-%s-%d", kind, r.epoch)
}

// actionsOf are those of all scopes.
func actionsOf(scopes []string) string {
	var all []string
	for _, scope := range strings.Fields(strings.Join(scopes, " ")) {
		if parts := strings.Split(scope, ":"); len(parts) == 3 {
			all = append(all, parts[2])
		}
	}
	return strings.Join(all, ",")
}

func (r *Registry) serveToken(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := q.ParseForm(); err != nil {
		w.WriteHeader(http.StatusBadRequest)
		return
	}
	user, password, _ := q.BasicAuth()
	ok := r.user == "" || login(user, password) == r.user
	if q.Method == http.MethodPost { // OAuth 2: the identity token is "identity-" and the user's login
		ok = q.FormValue("grant_type") == "refresh_token" && q.FormValue("refresh_token") == "identity-"+r.user
	}
	if !ok {
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.ill > 0 {
		r.ill--
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	}
	answer := map[string]any{"token": r.tokenLocked(actionsOf(q.Form["scope"]))}
	if r.bad > 0 {
		r.bad--
		answer["token"] = "bad"
	}
	if r.life > 0 {
		answer["expires_in"] = r.life
	}
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		return // the client has gone
	}
}

func (r *Registry) serveSigned(w http.ResponseWriter, q *http.Request) {
	r.mu.Lock()
	ok := q.URL.Query().Get("signature") == "s3cret"+strconv.Itoa(r.signed)
	r.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusForbidden)
		return
	}
	r.answer(w, q)
}

// Patience is a time that only what hangs reaches.
const Patience = 20 * time.Second
