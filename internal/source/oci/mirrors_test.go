package oci_test

import (
	"bytes"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

// withHosts are options with a hosts.toml of registry.test.
func withHosts(t testing.TB, text string) oci.Options {
	t.Helper()
	opts := options(t)
	dir := filepath.Join(opts.HostsDir, "registry.test")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return opts
}

const dead = `[host."http://127.0.0.1:1"]` + "\n"

func onRegistry(q ocitest.Request) bool { return q.Server == "registry" && q.Method == "GET" }

func TestMirrorsAreAskedInOrder(t *testing.T) {
	data := sourcetest.Bytes(faultSize)
	own, mirror, empty := ocitest.New(t), ocitest.New(t), ocitest.New(t)
	own.Push(t, "team/app:1", ocitest.Image(t, data))
	mirror.Push(t, "team/app:1", ocitest.Image(t, data))
	opts := withHosts(t, fmt.Sprintf("server = \"http://%s\"\n%s[host.\"http://%s\"]\n[host.\"http://%s\"]\ncapabilities = [\"pull\"]\n",
		own.Host(), dead, empty.Host(), mirror.Host()))
	img := mustOpen(t, "registry.test/team/app:1", opts)
	if n := mirror.Count(func(q ocitest.Request) bool { return strings.HasSuffix(q.Path, "/manifests/1") && q.Method == "GET" }); n != 0 {
		t.Errorf("a mirror that may not resolve was asked to, %d times", n)
	}
	before := own.Count(onRegistry)
	b := retry.Wrap(mustBlob(t, img, 0), retry.Policy{First: time.Millisecond})
	for off := int64(0); off < faultSize; off += 30000 {
		sourcetest.MustRead(t, b, data, off, 30000)
	}
	if n := own.Count(onRegistry) - before; n != 0 {
		t.Errorf("the registry was asked %d times for what a mirror has", n)
	}
	if n := empty.Count(onRegistry); n > 4 {
		t.Errorf("the mirror without the blob was asked %d times", n)
	}
	for _, q := range mirror.Log() {
		if q.Method == http.MethodGet && q.Path != "/v2/" && q.Query.Get("ns") != "registry.test" {
			t.Errorf("the mirror is not told which registry: %s %v", q.Path, q.Query)
		}
	}
	mirror.Stop()
	sourcetest.MustRead(t, b, data, 1000, 100000)
	if own.Count(onRegistry) == before {
		t.Error("the registry was not asked when the mirror was gone")
	}
}

// A mirror fails in every way that there is, and readers do not notice.
func TestMirrorFaults(t *testing.T) {
	data := sourcetest.Bytes(faultSize)
	own := ocitest.New(t)
	own.Push(t, "app:1", ocitest.Image(t, data))
	for _, c := range faults {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			mirror := ocitest.New(t)
			mirror.Push(t, "app:1", ocitest.Image(t, data))
			opts := withHosts(t, fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n", own.Host(), mirror.Host()))
			if c.waits {
				opts.Stall, opts.ResponseHeader = 150*time.Millisecond, 150*time.Millisecond
			}
			img := mustOpen(t, "registry.test/app:1", opts)
			b := retry.Wrap(mustBlob(t, img, 0), retry.Policy{First: time.Millisecond})
			faulty(t, mirror, data).Always(c.fault)
			mustEnd(t, b, data, 1000, 200000, nil)
		})
	}
}

// Bytes that a reader finds wrong are asked of the other hosts, each once, and who sent
// them is asked last from then on.
func TestMirrorThatSendsWrongBytes(t *testing.T) {
	data := sourcetest.Bytes(faultSize)
	wrong := sourcetest.Bytes(faultSize + 1)[1:]
	hosts := []*ocitest.Registry{ocitest.New(t), ocitest.New(t), ocitest.New(t)}
	for _, h := range hosts {
		h.Push(t, "app:1", ocitest.Image(t, data))
	}
	for _, h := range hosts[:2] {
		h.Blob(data, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
			http.ServeContent(w, q, "", time.Time{}, bytes.NewReader(wrong))
		}))
	}
	opts := withHosts(t, fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n[host.\"http://%s\"]\n", hosts[2].Host(), hosts[0].Host(), hosts[1].Host()))
	b := retry.Wrap(mustBlob(t, mustOpen(t, "registry.test/app:1", opts), 0), retry.Policy{First: time.Millisecond})
	ctx, refuted := source.WithRefuted(t.Context())
	for n := range hosts {
		r, err := b.ReadRange(ctx, 100, 1000)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(r)
		if right := bytes.Equal(got, data[100:1100]); err != nil || right != (n == 2) {
			t.Errorf("host %d: right %v, %v", n, right, err)
		}
		if again := source.Refute(r); again != (n < 2) {
			t.Errorf("host %d: another is left: %v", n, again)
		}
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	}
	if want := fmt.Sprintf("%s, %s, %s", hosts[0].Host(), hosts[1].Host(), hosts[2].Host()); refuted.Names() != want {
		t.Errorf("refuted: %s", refuted.Names())
	}
	if _, err := b.ReadRange(ctx, 0, 10); !errors.Is(err, source.ErrNotBytes) {
		t.Errorf("all are refuted: %v", err)
	}
}

func TestMirrorThatLies(t *testing.T) {
	data, other := sourcetest.Bytes(5000), sourcetest.Bytes(5001)[1:]
	own, mirror := ocitest.New(t), ocitest.New(t)
	ref := own.Push(t, "app:1", ocitest.Image(t, data))
	mirror.Push(t, "app:1", ocitest.Image(t, data))
	honest := mustOpen(t, ref, options(t))
	// Any manifest and any configuration is another image's.
	lies := ocitest.New(t)
	lies.Push(t, "app:1", ocitest.Image(t, other))
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		q.URL.Path = "/v2/app/manifests/1"
		httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: lies.Host()}).ServeHTTP(w, q)
	}))
	t.Cleanup(proxy.Close)
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	opts := withHosts(t, fmt.Sprintf("server = \"http://%s\"\n[host.%q]\n", own.Host(), proxy.URL))
	img := mustOpen(t, "registry.test/app@"+honest.Digest.String(), opts)
	if img.Digest != honest.Digest || string(img.Config) != string(honest.Config) {
		t.Errorf("%+v", img)
	}
	// Alone it is no source at all.
	opts = withHosts(t, fmt.Sprintf("server = %q\n", proxy.URL))
	_, err := oci.Open(t.Context(), "registry.test/app@"+honest.Digest.String(), opts)
	if !errors.Is(err, source.ErrNotBytes) {
		t.Errorf("only lies: %v", err)
	}
}

func TestMirrorOverTLS(t *testing.T) {
	data := sourcetest.Bytes(50000)
	own := ocitest.New(t)
	own.Push(t, "app:1", ocitest.Image(t, data))
	proxy := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: own.Host()})
	var protocols []string
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		protocols = append(protocols, q.Proto)
		path, ok := strings.CutPrefix(q.URL.Path, "/cache/registry")
		if !ok || q.Header.Get("X-Key") != "k" {
			w.WriteHeader(http.StatusTeapot)
			return
		}
		q.URL.Path = "/v2" + path
		proxy.ServeHTTP(w, q)
	}))
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	table := fmt.Sprintf("[host.\"%s/cache/registry\"]\noverride_path = true\n%%s\n[host.\"%s/cache/registry\".header]\nx-key = \"k\"\n", s.URL, s.URL)
	server := "server = \"http://127.0.0.1:1\"\n"

	if _, err := oci.Open(t.Context(), "registry.test/app:1", withHosts(t, server+fmt.Sprintf(table, ""))); !errors.Is(err, source.ErrUnreachable) {
		t.Errorf("unknown certificate: %v", err)
	}
	opts := withHosts(t, server+fmt.Sprintf(table, "ca = \"ca.pem\""))
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(opts.HostsDir, "registry.test", "ca.pem"), ca, 0o600); err != nil {
		t.Fatal(err)
	}
	sourcetest.MustRead(t, mustBlob(t, mustOpen(t, "registry.test/app:1", opts), 0), data, 1000, 40000)
	opts = withHosts(t, server+fmt.Sprintf(table, "skip_verify = true"))
	sourcetest.MustRead(t, mustBlob(t, mustOpen(t, "registry.test/app:1", opts), 0), data, 1000, 40000)
	for _, p := range protocols {
		if p != "HTTP/2.0" {
			t.Errorf("protocol %s", p)
		}
	}
}
