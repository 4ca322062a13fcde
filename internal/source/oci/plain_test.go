package oci_test

import (
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

// elsewhere makes connections to any host end at the registry r.
func elsewhere(t *testing.T, r *ocitest.Registry, seen *[]string) oci.Options {
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		*seen = append(*seen, q.Method+" "+q.URL.String()+q.Host)
		if q.Method == http.MethodConnect {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: r.Host()})
		}}).ServeHTTP(w, q)
	}))
	t.Cleanup(proxy.Close)
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	opts := options(t)
	opts.Proxy = func(*http.Request) (*url.URL, error) { return url.Parse(proxy.URL) }
	return opts
}

func TestPlainHTTPOnlyWhereAsked(t *testing.T) {
	r := ocitest.New(t)
	data := sourcetest.Bytes(1000)
	r.Push(t, "app:1", ocitest.Image(t, data))
	for _, host := range []string{"registry.test", "10.1.2.3:5000"} {
		var seen []string
		opts := elsewhere(t, r, &seen)
		mustFail(t, host+"/app:1", opts, source.ErrUnreachable, host)
		for _, s := range seen {
			if !strings.HasPrefix(s, "CONNECT") {
				t.Errorf("%s: without encryption: %s", host, s)
			}
		}
		opts.PlainHTTP = true
		sourcetest.MustRead(t, mustBlob(t, mustOpen(t, host+"/app:1", opts), 0), data, 10, 900)
	}
}

// On loopback a registry may have encryption or not.
func TestLoopbackOverTLS(t *testing.T) {
	r := ocitest.New(t)
	data := sourcetest.Bytes(1000)
	r.Push(t, "app:1", ocitest.Image(t, data))
	s := httptest.NewUnstartedServer(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
		p.SetURL(&url.URL{Scheme: "http", Host: r.Host()})
	}})
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	ref := strings.TrimPrefix(s.URL, "https://") + "/app:1"
	mustFail(t, ref, options(t), source.ErrUnreachable, "certificate")
	opts := options(t)
	opts.TLS = s.Client().Transport.(*http.Transport).TLSClientConfig
	sourcetest.MustRead(t, mustBlob(t, mustOpen(t, ref, opts), 0), data, 10, 900)
}

func TestOpenErrors(t *testing.T) {
	r := ocitest.New(t)
	ref := r.Push(t, "app:1", ocitest.Image(t, sourcetest.Bytes(10)))
	mustFail(t, r.Host()+"/app:2", options(t), source.ErrNotFound, r.Host()+"/app:2")
	mustFail(t, r.Host()+"/none:1", options(t), source.ErrNotFound, "404")
	mustFail(t, "127.0.0.1:1/app:1", options(t), source.ErrUnreachable, "127.0.0.1:1")
	mustFail(t, "no/such host", options(t), nil, "malformed reference")
	opts := options(t)
	opts.Platform = "linux"
	mustFail(t, ref, opts, nil, "platform")
	opts = options(t)
	opts.Authfile = opts.HostsDir + "/none.json"
	r.WantToken("me", "pw")
	mustFail(t, ref, opts, os.ErrNotExist, "none.json")
	mustFail(t, ref, options(t), source.ErrDenied, r.Host())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := oci.Open(ctx, ref, options(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
}

func TestLoginsOfAllKinds(t *testing.T) {
	data := sourcetest.Bytes(5000)
	for name, want := range map[string]func(*ocitest.Registry){
		"basic":  func(r *ocitest.Registry) { r.WantBasic("me", "p:w") },
		"bearer": func(r *ocitest.Registry) { r.WantToken("me", "p:w") },
		"short": func(r *ocitest.Registry) {
			r.WantToken("me", "p:w")
			r.TokenLife(1)
			r.ExpireTokensAfter(3)
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := ocitest.New(t)
			ref := r.Push(t, "app:1", ocitest.Image(t, data))
			want(r)
			opts := options(t)
			opts.Authfile = authfile(t, r.Host(), "me", "p:w")
			b := mustBlob(t, mustOpen(t, ref, opts), 0)
			for off := int64(0); off < 5000; off += 100 {
				sourcetest.MustRead(t, b, data, off, 100)
			}
			opts.Authfile = authfile(t, r.Host(), "me", "wrong")
			mustFail(t, ref, opts, source.ErrDenied, "")
		})
	}
}

// The credentials behind a token change while an image is in use.
func TestCredentialsAreReadAnew(t *testing.T) {
	data := sourcetest.Bytes(5000)
	r := ocitest.New(t)
	ref := r.Push(t, "app:1", ocitest.Image(t, data))
	r.WantToken("me", "first")
	opts := options(t)
	opts.Authfile = authfile(t, r.Host(), "me", "first")
	b := mustBlob(t, mustOpen(t, ref, opts), 0)
	r.WantToken("me", "second")
	r.ExpireTokens()
	next, err := os.ReadFile(authfile(t, r.Host(), "me", "second"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(opts.Authfile, next, 0o600); err != nil {
		t.Fatal(err)
	}
	sourcetest.MustRead(t, b, data, 10, 1000)
}

// A token server that hangs holds nobody beyond their own patience.
func TestTokenServerThatHangs(t *testing.T) {
	r := ocitest.New(t)
	ref := r.Push(t, "app:1", ocitest.Image(t, sourcetest.Bytes(10)))
	done := make(chan struct{})
	hang := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		select {
		case <-done:
		case <-q.Context().Done():
		}
	}))
	t.Cleanup(hang.Close)
	t.Cleanup(func() { close(done) })
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("WWW-Authenticate", `Bearer realm="`+hang.URL+`"`)
		w.WriteHeader(http.StatusUnauthorized)
	}))
	t.Cleanup(front.Close)
	ref = strings.Replace(ref, r.Host(), strings.TrimPrefix(front.URL, "http://"), 1)
	opts := options(t)
	opts.ResponseHeader = 100 * time.Millisecond
	mustFail(t, ref, opts, source.ErrUnreachable, "token")
	opts.ResponseHeader = 0
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := oci.Open(ctx, ref, opts); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("with a deadline: %v", err)
	}
}
