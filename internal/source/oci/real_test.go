package oci_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

// A registry that this project did not write.
func TestRealRegistrySuite(t *testing.T) {
	host := ocitest.Real(t, "")
	n := 0
	sourcetest.Run(t, func(t *testing.T, data []byte) source.Blob {
		n++
		ref := fmt.Sprintf("%s/team/suite:%d", host, n)
		ocitest.Push(t, ref, ocitest.Image(t, data), authn.Anonymous)
		return mustBlob(t, mustOpen(t, ref, options(t)), 0)
	})
}

// The same behind tokens and signed addresses that expire.
func TestRealRegistryBehindRedirects(t *testing.T) {
	u := &url.URL{Scheme: "http", Host: ocitest.Real(t, "")}
	proxy := httputil.NewSingleHostReverseProxy(u)
	idle := httptest.NewServer(nil) // only for its client's transport
	t.Cleanup(idle.Close)
	proxy.Transport = idle.Client().Transport
	r := ocitest.NewFor(t, proxy)
	data := sourcetest.Bytes(300000)
	ocitest.Push(t, u.Host+"/app:1", ocitest.Image(t, data), authn.Anonymous)
	r.WantToken("", "")
	r.RedirectBlobs()
	b := mustBlob(t, mustOpen(t, r.Host()+"/app:1", options(t)), 0)
	for off := int64(0); off < 300000; off += 30000 {
		r.ExpireTokens()
		r.ExpireAddresses()
		sourcetest.MustRead(t, b, data, off, 30000)
	}
}

// authfile is a docker configuration with one login.
func authfile(t testing.TB, registry, user, password string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "auth.json")
	auth := base64.StdEncoding.EncodeToString([]byte(user + ":" + password))
	if err := os.WriteFile(path, fmt.Appendf(nil, `{"auths":{%q:{"auth":%q}}}`, registry, auth), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRealRegistryWithHtpasswd(t *testing.T) {
	host := ocitest.Real(t, ocitest.Htpasswd(t))
	data := sourcetest.Bytes(100000)
	ref := host + "/app:1"
	ocitest.Push(t, ref, ocitest.Image(t, data), &authn.Basic{Username: ocitest.RealUser, Password: ocitest.RealPassword})
	opts := options(t)
	if _, err := oci.Open(t.Context(), ref, opts); !errors.Is(err, source.ErrDenied) {
		t.Errorf("without a login: %v", err)
	}
	opts.Authfile = authfile(t, host, ocitest.RealUser, "wrong")
	if _, err := oci.Open(t.Context(), ref, opts); !errors.Is(err, source.ErrDenied) {
		t.Errorf("with a wrong password: %v", err)
	}
	opts.Authfile = authfile(t, host, ocitest.RealUser, ocitest.RealPassword)
	sourcetest.MustRead(t, mustBlob(t, mustOpen(t, ref, opts), 0), data, 5000, 90000)
}

// The registry itself finds its tokens expired, several times.
func TestRealRegistryWithTokens(t *testing.T) {
	issuer := ocitest.NewIssuer(t, time.Second)
	host := ocitest.Real(t, issuer.Login())
	data := sourcetest.Bytes(300000)
	ref := host + "/team/app:1"
	opts := options(t)
	push := &authn.Basic{Username: ocitest.RealUser, Password: ocitest.RealPassword}
	ocitest.Push(t, ref, ocitest.Image(t, data), push)
	b := retry.Wrap(mustBlob(t, mustOpen(t, ref, opts), 0), retry.Policy{})
	before := issuer.Issued()
	for began := time.Now(); issuer.Issued() < before+3; {
		sourcetest.MustRead(t, b, data, 1000, 200000)
		if time.Since(began) > ocitest.Patience {
			t.Fatal("tokens do not expire")
		}
	}
}
