package image

import (
	"encoding/base64"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/test/instance"
)

func isToken(q ocitest.Request) bool { return q.Server == "token" }

// loggedIn mounts an image of a registry that wants a login and redirects blobs to
// signed addresses.
func loggedIn(t *testing.T, f *faulty, r *ocitest.Registry) (m *mounted, dir string, tree *node) {
	t.Helper()
	image := formatOf("estargz").packAll(t, stormTars(t, 12)...)
	ref, tree := image.push(t, r), image.tree(t)
	r.WantToken("somebody", "hush")
	r.RedirectBlobs()
	m = start(t, "deadline = \"40s\"\n")
	authfile := filepath.Join(m.Dir, "auth.json")
	login := base64.StdEncoding.EncodeToString([]byte("somebody:hush"))
	if err := os.WriteFile(authfile, fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, r.Host(), login), 0o600); err != nil {
		t.Fatal(err)
	}
	dir = filepath.Join(m.Dir, "mnt")
	m.Lacuna("mount", "--authfile", authfile, ref, dir)
	f.set(func() { f.rate = 2 << 20 })
	return m, dir, tree
}

// Tokens and signed addresses expire under readers, bodies break, new tokens are bad
// and their server is ill: readers get right bytes, and ask for few tokens.
func TestLoginsExpireUnderReaders(t *testing.T) {
	f, r := newFaulty(t)
	m, dir, tree := loggedIn(t, f, r)
	f.set(func() { f.every = []fault{right, short, right, reset, right, busy} })
	files := filesOf(tree)
	for n, trouble := range []func(){
		r.ExpireTokens,
		r.ExpireAddresses,
		func() { r.ExpireTokens(); r.ExpireAddresses(); r.BadTokens(2) },
		func() { r.ExpireTokens(); r.ExpireAddresses(); r.TokenServerIll(2) },
		func() { r.Deny(1) },
	} {
		part := files[n*len(files)/5 : (n+1)*len(files)/5]
		before := r.Count(isToken)
		readers := startReaders(t, order{Dir: dir, Files: part, Readers: 6, Seed: uint64(n), Once: true})
		trouble()
		sum := readers.wait(3 * time.Minute)
		sum.wantRight(t)
		if asked := r.Count(isToken) - before; asked > 6 {
			t.Errorf("trouble %d: %d requests for tokens", n, asked)
		}
	}
	f.set(func() { f.rate, f.every = 0, nil })
	compare(t, dir, tree)
	m.umount(dir)
	for _, q := range r.Log() {
		if q.Server == "cdn" && q.Header.Get("Authorization") != "" {
			t.Fatal("the login went to the other server")
		}
	}
}

// Who may not read any more is told so in time, with the reason in status, and
// hammers nobody; once he may again, all is right.
func TestLoginIsTakenBack(t *testing.T) {
	f, r := newFaulty(t)
	m, dir, tree := loggedIn(t, f, r)
	f.set(func() { f.rate = 0 })
	files := filesOf(tree)
	before := r.Count(isToken)
	r.WantToken("somebody", "else")
	r.ExpireTokens()
	r.ExpireAddresses()
	began := time.Now()
	sum := readOnce(t, dir, files, 8)
	if sum.Wrong+sum.Other > 0 || sum.EIO == 0 || sum.Slowest > 20*time.Second {
		t.Errorf("%s: %q", sum.String(), sum.Examples)
	}
	// Each pause is at least a second, and they grow.
	if asked := r.Count(isToken) - before; asked > 2+int(time.Since(began)/time.Second) {
		t.Errorf("%d requests for tokens in %v", asked, time.Since(began))
	}
	if out := m.Lacuna("status"); !strings.Contains(out, "401 unauthorized") || strings.Contains(out, "hush") {
		t.Errorf("status says\n%s", out)
	}
	r.WantToken("somebody", "hush")
	instance.Eventually(t, 90*time.Second, func() error {
		if sum := readOnce(t, dir, files[:1], 1); sum.EIO > 0 {
			return fmt.Errorf("%s", sum.String())
		}
		return nil
	})
	compare(t, dir, tree)
	m.umount(dir)
}

// A registry that asks for a pause gets it, and the reader its bytes.
func TestRetryAfterIsKeptTo(t *testing.T) {
	var left atomic.Int32
	var early atomic.Int32
	var until atomic.Int64
	content := registry.New(registry.Logger(log.New(io.Discard, "", 0)))
	r := ocitest.NewFor(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		now := time.Now().UnixNano()
		if q.Header.Get("Range") == "" || left.Load() < 0 {
			content.ServeHTTP(w, q)
			return
		}
		if now < until.Load() {
			early.Add(1)
		}
		if left.Add(-1) >= 0 {
			until.Store(now + int64(900*time.Millisecond))
			w.Header().Set("Retry-After", "1")
			w.WriteHeader([]int{http.StatusTooManyRequests, http.StatusServiceUnavailable}[left.Load()%2])
			return
		}
		content.ServeHTTP(w, q)
	}))
	left.Store(-1)
	image := formatOf("estargz").packAll(t, tarOf(t, file("a", strings.Repeat("text ", 100_000))))
	m := start(t, "")
	dir := m.mount(image.push(t, r), "mnt")
	left.Store(2)
	sum := readOnce(t, dir, filesOf(image.tree(t)), 1)
	sum.wantRight(t)
	if early.Load() > 0 || left.Load() >= 0 {
		t.Errorf("%d requests came before their time, %d refusals are left", early.Load(), left.Load())
	}
	m.umount(dir)
}
