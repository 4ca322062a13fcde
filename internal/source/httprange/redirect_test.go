package httprange_test

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/httprange"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

func TestRedirectTargetIsRemembered(t *testing.T) {
	data := sourcetest.Bytes(10000)
	s := sourcetest.NewServer(t, data)
	b := mustOpen(t, s.Redirect(), httprange.Options{})
	paths := func() string {
		var all []string
		for _, r := range s.Log() {
			all = append(all, r.Path)
		}
		return strings.Join(all, " ")
	}
	sourcetest.MustRead(t, b, data, 1, 10)
	sourcetest.MustRead(t, b, data, 2, 10)
	if got := paths(); got != "/redirect /signed /signed /signed" {
		t.Fatalf("requests: %s", got)
	}
	s.Expire()
	sourcetest.MustRead(t, b, data, 3, 10)
	sourcetest.MustRead(t, b, data, 4, 10)
	if got := paths(); got != "/redirect /signed /signed /signed /signed /redirect /signed /signed" {
		t.Fatalf("requests after the signature expired: %s", got)
	}
	s.Next(sourcetest.Status(403, ""), sourcetest.Status(403, ""))
	if _, err := sourcetest.Read(t.Context(), b, 0, 1); !errors.Is(err, source.ErrDenied) {
		t.Fatalf("denied for good: %v", err)
	}
}

func TestCredentialsStayWithTheirHost(t *testing.T) {
	data := sourcetest.Bytes(1000)
	s := sourcetest.NewServer(t, data)
	first := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if user, password, _ := r.BasicAuth(); user != "me" || password != "s3cret" || r.Header.Get("X-Token") != "t0ken" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		http.Redirect(w, r, s.URL(), http.StatusTemporaryRedirect)
	}))
	t.Cleanup(first.Close)
	url := strings.Replace(first.URL, "http://", "http://me:s3cret@", 1)
	b := mustOpen(t, url, httprange.Options{Header: http.Header{"x-token": {"t0ken"}, "Range": {"bytes=0-3"}}})
	sourcetest.MustRead(t, b, data, 100, 100)
	for _, r := range s.Log() {
		if r.Header.Get("Authorization") != "" || r.Header.Get("X-Token") != "" {
			t.Fatalf("the second host got %v", r.Header)
		}
	}
}

func TestBasicAuthentication(t *testing.T) {
	data := sourcetest.Bytes(1000)
	s := sourcetest.NewServer(t, data)
	s.SetLogin("me", "p:w")
	url := strings.Replace(s.URL(), "http://", "http://me:p%3Aw@", 1)
	sourcetest.MustRead(t, mustOpen(t, url, httprange.Options{}), data, 0, 1000)
	_, err := httprange.Open(t.Context(), s.URL(), httprange.Options{})
	if !errors.Is(err, source.ErrDenied) {
		t.Fatalf("without login: %v", err)
	}
}

func TestErrorsNameNoSecrets(t *testing.T) {
	s := sourcetest.NewServer(t, sourcetest.Bytes(10))
	s.SetLogin("a", "b")
	loop := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Location", r.URL.Query().Get("to"))
		w.WriteHeader(http.StatusFound)
	}))
	t.Cleanup(loop.Close)
	host := strings.TrimPrefix(s.URL(), "http://")
	for _, url := range []string{
		"http://me:S3CRET@" + host + "?sig=S3CRET",
		"http://me:S3CRET@" + host + "/none?S3CRET#S3CRET",
		"http://me:S3CRET@127.0.0.1:1/?sig=S3CRET",
		"http://S3CRET:S3/CRET@127.0.0.1/",
		"http://me:S3CRET@%zz/", "ftp://S3CRET@host/", "http:S3CRET",
		loop.URL + "?to=http://127.0.0.1:1/?sig=S3CRET",
		loop.URL + "?to=http://x:S3CRET%2540%25zz",
		loop.URL + "?to=//S3CRET:x@:1/",
		loop.URL + "?to=%3Fto=S3CRET",
	} {
		_, err := httprange.Open(t.Context(), url, httprange.Options{})
		switch {
		case err == nil:
			t.Errorf("%s opened", url)
		case strings.Contains(err.Error(), "S3CRET"):
			t.Errorf("%s: %v", url, err)
		default:
			t.Log(err)
		}
	}
}

func TestTLSThatIsNotTrusted(t *testing.T) {
	s := sourcetest.NewTLSServer(t, sourcetest.Bytes(10))
	_, err := httprange.Open(t.Context(), s.URL(), httprange.Options{})
	if !errors.Is(err, source.ErrUnreachable) || source.Temporary(err) {
		t.Errorf("unknown certificate: %v", err)
	}
	plain := httptest.NewTLSServer(http.RedirectHandler("http://127.0.0.1:1/?secret", http.StatusFound))
	t.Cleanup(plain.Close)
	_, err = httprange.Open(t.Context(), plain.URL, httprange.Options{TLS: s.ClientTLS()})
	if !errors.Is(err, source.ErrNotBytes) || strings.Contains(err.Error(), "secret") {
		t.Errorf("redirect from https to http: %v", err)
	}
}
