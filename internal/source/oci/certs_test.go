package oci_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

// clientPair is a certificate that signs itself, and its key, in PEM.
func clientPair(t *testing.T) (cert *x509.Certificate, certPEM, keyPEM []byte) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "client"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	if cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})
}

// wantsClient is r with encryption, for those who show the certificate client.
func wantsClient(t *testing.T, r *ocitest.Registry, client *x509.Certificate) *httptest.Server {
	t.Helper()
	s := httptest.NewUnstartedServer(httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: r.Host()}))
	pool := x509.NewCertPool()
	pool.AddCert(client)
	s.TLS = &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS()
	t.Cleanup(s.Close)
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	return s
}

func write(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestClientCertificates(t *testing.T) {
	data := sourcetest.Bytes(5000)
	r := ocitest.New(t)
	r.Push(t, "app:1", ocitest.Image(t, data))
	client, cert, key := clientPair(t)
	s := wantsClient(t, r, client)
	host := strings.TrimPrefix(s.URL, "https://")
	ca := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	both := append(append([]byte(nil), cert...), key...)
	files := map[string][]byte{"ca.crt": ca, "client.cert": cert, "client.key": key, "both.pem": both}
	toml := func(client string) []byte {
		return fmt.Appendf(nil, "server = %q\nca = \"ca.crt\"\n%s\n", s.URL, client)
	}
	for name, c := range map[string]struct {
		ref, dir, client string // client: of hosts.toml; "-": there is none
		fails            bool
	}{
		"one file":               {"registry.test", "registry.test", `client = "both.pem"`, false},
		"a list of files":        {"registry.test:99", "registry.test_99_", `client = ["both.pem"]`, false},
		"a pair":                 {"registry.test:99", "registry.test:99", `client = [["client.cert", "client.key"]]`, false},
		"a pair with one file":   {"registry.test", "_default", `client = [["both.pem", ""]]`, false},
		"files as docker's":      {host, strings.ReplaceAll(host, ":", "_") + "_", "-", false},
		"no client certificate":  {"registry.test", "registry.test", "", true},
		"of another port's name": {"registry.test:98", "registry.test_99_", `client = "both.pem"`, true},
	} {
		t.Run(name, func(t *testing.T) {
			opts := options(t)
			dir := filepath.Join(opts.HostsDir, c.dir)
			write(t, dir, files)
			if c.client != "-" {
				write(t, dir, map[string][]byte{"hosts.toml": toml(c.client)})
			}
			if c.fails {
				opts.Connect = 500 * time.Millisecond
				if _, err := oci.Open(t.Context(), c.ref+"/app:1", opts); !errors.Is(err, source.ErrUnreachable) {
					t.Errorf("error %v", err)
				}
				return
			}
			sourcetest.MustRead(t, mustBlob(t, mustOpen(t, c.ref+"/app:1", opts), 0), data, 100, 4000)
		})
	}
}

// A host has a proxy of its own, and the others have what the program has.
func TestHostsProxy(t *testing.T) {
	data := sourcetest.Bytes(5000)
	r := ocitest.New(t)
	r.Push(t, "app:1", ocitest.Image(t, data))
	var asked atomic.Int32
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if q.URL.Host != "mirror.test" {
			t.Errorf("the proxy is asked for %s", q.URL)
		}
		asked.Add(1)
		(&httputil.ReverseProxy{Rewrite: func(p *httputil.ProxyRequest) {
			p.SetURL(&url.URL{Scheme: "http", Host: r.Host()})
		}}).ServeHTTP(w, q)
	}))
	t.Cleanup(proxy.Close)
	t.Cleanup(http.DefaultTransport.(*http.Transport).CloseIdleConnections)
	opts := withHosts(t, fmt.Sprintf("server = \"http://%s\"\n[host.\"http://mirror.test\"]\nproxy = %q\n", r.Host(), proxy.URL))
	opts.Proxy = func(q *http.Request) (*url.URL, error) {
		if q.URL.Host == "mirror.test" {
			t.Error("the environment's proxy is used")
		}
		return nil, nil
	}
	b := mustBlob(t, mustOpen(t, "registry.test/app:1", opts), 0)
	sourcetest.MustRead(t, b, data, 100, 4000)
	if asked.Load() < 4 {
		t.Errorf("the proxy was asked %d times", asked.Load())
	}
	proxy.Close() // then the registry itself is asked
	sourcetest.MustRead(t, b, data, 100, 4000)
}
