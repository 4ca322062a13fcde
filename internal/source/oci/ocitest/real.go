package ocitest

import (
	"bufio"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// The login of Htpasswd, and its line in that file's form.
const (
	RealUser     = "somebody"
	RealPassword = "s3cret"
	htpasswdLine = RealUser + ":$2a$04$icaqkIjG2rThvSpdF1Yg1eh6oldTcUrfqLb/JF4xfGe8zpswTkboW\n"
)

// Real starts the registry of the CNCF (github.com/distribution/distribution),
// as pinned in tools/registry/go.mod, and returns its host. It ends with the test.
// login is the part of its configuration about authentication; empty: none.
// The first build takes minutes.
func Real(t testing.TB, login string) (host string) {
	t.Helper()
	config := filepath.Join(t.TempDir(), "config.yml")
	text := "version: 0.1\nlog: {level: info, formatter: json, accesslog: {disabled: true}}\n" +
		"storage: {inmemory: {}, maintenance: {uploadpurging: {enabled: false}}}\n" +
		"http: {addr: \"127.0.0.1:0\", secret: test}\n" + login
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(build(t), "serve", config)
	cmd.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	out, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	listening, read := make(chan string, 1), make(chan struct{})
	go func() {
		defer close(read)
		defer close(listening)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			var line struct{ Msg string }
			if json.Unmarshal(lines.Bytes(), &line) != nil {
				continue
			}
			if at, ok := strings.CutPrefix(line.Msg, "listening on "); ok {
				listening <- at
			}
		}
	}()
	t.Cleanup(func() {
		if err := cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			t.Errorf("stop the registry: %v", err)
		}
		<-read
		var exit *exec.ExitError
		if err := cmd.Wait(); err != nil && !errors.As(err, &exit) {
			t.Errorf("stop the registry: %v", err)
		}
	})
	select {
	case host, ok := <-listening:
		if !ok {
			t.Fatal("the registry does not start")
		}
		return host
	case <-time.After(Patience):
		t.Fatal("the registry does not listen")
	}
	return ""
}

// build builds the registry once for all packages' tests.
func build(t testing.TB) string {
	t.Helper()
	return Tool(t, "registry", "registry", "github.com/distribution/distribution/v3/cmd/registry", "CGO_ENABLED=0")
}

// Tool builds the program pkg of the module in tools/module as bin/name, once for
// all packages' tests, and returns its path.
func Tool(t testing.TB, module, name, pkg string, env ...string) string {
	t.Helper()
	mod, err := exec.Command("go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Dir(strings.TrimSpace(string(mod)))
	bin := filepath.Join(root, "bin")
	if err := os.MkdirAll(bin, 0o755); err != nil {
		t.Fatal(err)
	}
	lock, err := os.OpenFile(filepath.Join(bin, "."+module+".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := lock.Close(); err != nil { // which unlocks it
			t.Error(err)
		}
	}()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	program := filepath.Join(bin, name)
	// An up to date program is left as it is, so running it meanwhile is no matter.
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", program, pkg)
	cmd.Dir = filepath.Join(root, "tools", module)
	cmd.Env = append(append(os.Environ(), "GOFLAGS=", "GOWORK=off"), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build %s: %v\n%s", name, err, out)
	}
	return program
}

// Htpasswd is the configuration of a registry that wants RealUser and RealPassword.
func Htpasswd(t testing.TB) (login string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(path, []byte(htpasswdLine), 0o600); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("auth: {htpasswd: {realm: test, path: %q}}\n", path)
}

// leeway is how long the real registry takes tokens that have expired
// (registry/auth/token/token.go).
const leeway = time.Minute

// Issuer is a token server for Real.
type Issuer struct {
	server *httptest.Server
	keys   string // its public key's file
	secret ed25519.PrivateKey
	issued atomic.Int64
	life   time.Duration
}

// NewIssuer starts a server whose tokens a registry takes for life, a number of
// seconds. Who logs in as RealUser may push, too, if that is asked for.
func NewIssuer(t testing.TB, life time.Duration) *Issuer {
	t.Helper()
	i := &Issuer{life: life, keys: filepath.Join(t.TempDir(), "keys.json")}
	public, secret, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	i.secret = secret
	keys := fmt.Sprintf(`{"keys":[{"kty":"OKP","crv":"Ed25519","alg":"EdDSA","use":"sig","kid":"test","x":%q}]}`,
		base64.RawURLEncoding.EncodeToString(public))
	if err := os.WriteFile(i.keys, []byte(keys), 0o600); err != nil {
		t.Fatal(err)
	}
	i.server = httptest.NewServer(i)
	t.Cleanup(i.server.Close)
	return i
}

// Login is the configuration of a registry that wants tokens of i.
func (i *Issuer) Login() string {
	// go-containerregistry's push refuses realms with the number of a private address.
	realm := strings.Replace(i.server.URL, "127.0.0.1", "localhost", 1) + "/token"
	return fmt.Sprintf("auth: {token: {realm: %q, service: test, issuer: test, jwks: %q, signingalgorithms: [EdDSA]}}\n",
		realm, i.keys)
}

// Issued is how many tokens there have been.
func (i *Issuer) Issued() int64 { return i.issued.Load() }

// ServeHTTP gives a token for what is asked for.
func (i *Issuer) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	i.issued.Add(1)
	user, password, _ := q.BasicAuth()
	type access struct {
		Type    string   `json:"type"`
		Name    string   `json:"name"`
		Actions []string `json:"actions"`
	}
	var all []access
	for _, scope := range q.URL.Query()["scope"] {
		parts := strings.Split(scope, ":")
		if len(parts) != 3 {
			continue
		}
		actions := slices.DeleteFunc(strings.Split(parts[2], ","), func(action string) bool {
			return action != "pull" && (action != "push" || user != RealUser || password != RealPassword)
		})
		all = append(all, access{parts[0], parts[1], actions})
	}
	now := time.Now()
	claims, err := json.Marshal(map[string]any{
		"iss": "test", "aud": "test", "sub": user, "iat": now.Unix(), "nbf": now.Add(-leeway).Unix(),
		"exp": now.Add(i.life - leeway).Unix(), "access": all,
	})
	if err != nil {
		panic(fmt.Sprintf("ocitest: internal error: %v", err))
	}
	encode := base64.RawURLEncoding.EncodeToString
	text := encode([]byte(`{"alg":"EdDSA","typ":"JWT","kid":"test"}`)) + "." + encode(claims)
	token := text + "." + encode(ed25519.Sign(i.secret, []byte(text)))
	if _, err := io.WriteString(w, `{"token":"`+token+`"}`); err != nil {
		return // the client has gone
	}
}
