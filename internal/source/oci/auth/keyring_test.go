package auth_test

import (
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci/auth"
)

func keyring(t *testing.T, text string) auth.Keyring {
	t.Helper()
	path := filepath.Join(t.TempDir(), "config.json")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return auth.Keyring{Files: []string{path}}
}

func basic(login string) string { return base64.StdEncoding.EncodeToString([]byte(login)) }

func TestKeyringFindsTheClosestEntry(t *testing.T) {
	entry := func(user string) string { return fmt.Sprintf(`{"auth":%q}`, basic(user+":p:w")) }
	k := keyring(t, `{"auths":{
		"https://index.docker.io/v1/": `+entry("hub")+`,
		"registry.test": `+entry("host")+`,
		"registry.test/team": `+entry("team")+`,
		"registry.test/team/app": `+entry("app")+`,
		"https://old.test/v2/": `+entry("old")+`,
		"port.test:5000": `+entry("port")+`,
		"plain.test": {"username": "plain", "password": "p:w"},
		"identity.test": {"auth": `+fmt.Sprintf("%q", basic("<token>:"))+`, "identitytoken": "i"},
		"token.test": {"registrytoken": "r"}
	}}`)
	for _, c := range []struct {
		registry, repository string
		want                 auth.Credential
	}{
		{"docker.io", "library/busybox", auth.Credential{Username: "hub", Password: "p:w"}},
		{"registry.test", "x", auth.Credential{Username: "host", Password: "p:w"}},
		{"registry.test", "team/x", auth.Credential{Username: "team", Password: "p:w"}},
		{"registry.test", "team/app", auth.Credential{Username: "app", Password: "p:w"}},
		{"registry.test", "teams/app", auth.Credential{Username: "host", Password: "p:w"}},
		{"registry.test:443", "x", auth.Credential{}},
		{"old.test", "x", auth.Credential{Username: "old", Password: "p:w"}},
		{"port.test:5000", "x", auth.Credential{Username: "port", Password: "p:w"}},
		{"port.test", "x", auth.Credential{}},
		{"plain.test", "x", auth.Credential{Username: "plain", Password: "p:w"}},
		{"identity.test", "x", auth.Credential{IdentityToken: "i"}},
		{"token.test", "x", auth.Credential{RegistryToken: "r"}},
	} {
		if got, err := k.Look(t.Context(), c.registry, c.repository); err != nil || got != c.want {
			t.Errorf("%s/%s: %+v, %v", c.registry, c.repository, got, err)
		}
	}
}

func TestKeyringFiles(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "none.json")
	if _, err := (auth.Keyring{Files: []string{missing}}).Look(t.Context(), "a.test", "b"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a file that must be there: %v", err)
	}
	if c, err := (auth.Keyring{Files: []string{missing}, Optional: true}).Look(t.Context(), "a.test", "b"); err != nil || c != (auth.Credential{}) {
		t.Errorf("a file that may be missing: %+v, %v", c, err)
	}
	for _, text := range []string{`{"auths":{"a.test":{"auth":"S3CRET"}}}`, `{"auths": "S3CRET"}`, `S3CRET`, `{"credsStore":"../S3"}`} {
		_, err := keyring(t, text).Look(t.Context(), "a.test", "b")
		if err == nil || strings.Contains(err.Error(), "S3CRET") {
			t.Errorf("%s: %v", text, err)
		}
	}
}

// program puts a credential program into the path.
func program(t *testing.T, name, script string) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "docker-credential-"+name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestCredentialPrograms(t *testing.T) {
	program(t, "test", `
read -r server || true
[ "$1" = get ] || exit 3
case "$server" in
user.test) echo '{"ServerURL":"x","Username":"u","Secret":"s"}' ;;
https://index.docker.io/v1/) echo '{"Username":"<token>","Secret":"i"}' ;;
broken.test) echo S3CRET; exit 1 ;;
text.test) echo S3CRET ;;
*) echo "credentials not found in native keychain"; exit 1 ;;
esac
`)
	k := keyring(t, `{"credsStore":"test","credHelpers":{"other.test":"missing"},"auths":{"file.test":{"username":"f","password":"p"}}}`)
	for registry, want := range map[string]auth.Credential{
		"user.test": {Username: "u", Password: "s"},
		"docker.io": {IdentityToken: "i"},
		"file.test": {Username: "f", Password: "p"},
		"none.test": {},
	} {
		if got, err := k.Look(t.Context(), registry, "r"); err != nil || got != want {
			t.Errorf("%s: %+v, %v", registry, got, err)
		}
	}
	for _, registry := range []string{"broken.test", "text.test", "other.test"} {
		_, err := k.Look(t.Context(), registry, "r")
		if !errors.Is(err, source.ErrDenied) || strings.Contains(err.Error(), "S3CRET") || !strings.Contains(err.Error(), "docker-credential-") {
			t.Errorf("%s: %v", registry, err)
		}
	}
}

// The ways in which registries are written down.
func TestKeySpellings(t *testing.T) {
	for key, registries := range map[string][]string{
		"https://index.docker.io/v1/":  {"docker.io", "index.docker.io", "registry-1.docker.io"},
		"index.docker.io":              {"docker.io"},
		"docker.io":                    {"docker.io", "index.docker.io"},
		"https://registry-1.docker.io": {"docker.io"},
		"https://a.test":               {"a.test"},
		"http://a.test:5000/v1/":       {"a.test:5000"},
		"https://a.test/v2":            {"a.test"},
		"a.test:5000":                  {"a.test:5000"},
		"[::1]:5000":                   {"[::1]:5000"},
	} {
		entry := fmt.Sprintf(`{%q: {"auth": %q}}`, key, basic("u:p"))
		for _, registry := range registries {
			want := auth.Credential{Username: "u", Password: "p"}
			if got, err := keyring(t, `{"auths": `+entry+`}`).Look(t.Context(), registry, "x/y"); err != nil || got != want {
				t.Errorf("%s for %s: %+v, %v", key, registry, got, err)
			}
		}
		if got, err := keyring(t, `{"auths": `+entry+`}`).Look(t.Context(), "b.test", "x/y"); err != nil || got != (auth.Credential{}) {
			t.Errorf("%s for b.test: %+v, %v", key, got, err)
		}
	}
}

// The program of a registry comes before that of all, and before what is written down;
// who has none is looked for further on. Programs are asked by the key in the file.
func TestCredentialHelpers(t *testing.T) {
	program(t, "one", `
read -r server || true
case "$server" in
one.test:5000|https://index.docker.io/v1/) echo "{\"Username\":\"one\",\"Secret\":\"$server\"}" ;;
*) echo "credentials not found in native keychain"; exit 1 ;;
esac
`)
	program(t, "all", `echo '{"Username":"<token>","Secret":"all"}'`)
	k := keyring(t, `{"credHelpers":{"one.test:5000":"one","https://index.docker.io/v1/":"one","asked.test":"one"},"credsStore":"all",
		"auths":{"one.test:5000":{"auth":"`+basic("f:f")+`"},"asked.test":{},"https://index.docker.io/v1/":{}}}`)
	for registry, want := range map[string]auth.Credential{
		"one.test:5000": {Username: "one", Password: "one.test:5000"},
		"docker.io":     {Username: "one", Password: "https://index.docker.io/v1/"},
		"asked.test":    {IdentityToken: "all"},
		"one.test":      {IdentityToken: "all"},
	} {
		if got, err := k.Look(t.Context(), registry, "r"); err != nil || got != want {
			t.Errorf("%s: %+v, %v", registry, got, err)
		}
	}
}
