package auth

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
)

// Credential is what somebody may log in with. The zero value is nobody.
type Credential struct {
	Username, Password string
	// IdentityToken is exchanged for tokens by the OAuth 2 flow.
	IdentityToken string
	// RegistryToken is itself what the registry wants to see.
	RegistryToken string
}

// Keyring finds credentials in files of docker's form (config.json, podman's
// auth.json) and in the programs that they name (credential helpers). It holds
// nothing: each look reads the files anew, because what is in them expires.
type Keyring struct {
	// Files are read in order until one has an answer.
	Files []string
	// Optional says that files may be missing.
	Optional bool
}

// ProgramTime bounds the answer of a credential program.
const ProgramTime = 30 * time.Second

// configFile is the part of docker's configuration that says who one is.
type configFile struct {
	Auths map[string]struct {
		Auth          string `json:"auth"`
		Username      string `json:"username"`
		Password      string `json:"password"`
		IdentityToken string `json:"identitytoken"`
		RegistryToken string `json:"registrytoken"`
	} `json:"auths"`
	CredsStore  string            `json:"credsStore"`
	CredHelpers map[string]string `json:"credHelpers"`
}

// Look returns the credential for a repository of registry, which is a host
// with an optional port.
func (k Keyring) Look(ctx context.Context, registry, repository string) (Credential, error) {
	for _, file := range k.Files {
		c, err := look(ctx, file, registry, repository)
		switch {
		case k.Optional && errors.Is(err, os.ErrNotExist):
		case err != nil || c != Credential{}:
			return c, err
		}
	}
	return Credential{}, nil
}

func look(ctx context.Context, file, registry, repository string) (Credential, error) {
	data, err := os.ReadFile(file)
	if err != nil {
		return Credential{}, fmt.Errorf("read credentials: %w", err)
	}
	var cfg configFile
	if err := json.Unmarshal(data, &cfg); err != nil {
		// The error's own text may quote what is in the file.
		return Credential{}, fmt.Errorf("read credentials: %s is no docker configuration in JSON", file)
	}
	names := names(registry)
	for host, program := range cfg.CredHelpers {
		for _, name := range names {
			if plainKey(host) == name && program != "" {
				if c, err := ask(ctx, program, host); err != nil || c != (Credential{}) {
					return c, err
				}
			}
		}
	}
	if cfg.CredsStore != "" {
		if c, err := ask(ctx, cfg.CredsStore, serverURL(registry)); err != nil || c != (Credential{}) {
			return c, err
		}
	}
	return cfg.find(file, names, repository)
}

// find prefers the entry of the repository or of a path above it (containers-auth.json(5)).
func (cfg configFile) find(file string, names []string, repository string) (Credential, error) {
	best, length := "", -1
	for key := range cfg.Auths {
		for _, name := range names {
			plain := plainKey(key)
			under, ok := strings.CutPrefix(name+"/"+repository+"/", plain+"/")
			if !ok || under == "" && plain != name+"/"+repository {
				continue
			}
			// The same key in two spellings: the one that sorts first.
			if len(plain) > length || len(plain) == length && key < best {
				best, length = key, len(plain)
			}
		}
	}
	if length < 0 {
		return Credential{}, nil
	}
	a := cfg.Auths[best]
	c := Credential{a.Username, a.Password, a.IdentityToken, a.RegistryToken}
	if a.Auth != "" {
		raw, err := base64.StdEncoding.DecodeString(a.Auth)
		user, password, ok := strings.Cut(strings.TrimRight(string(raw), "\x00"), ":")
		if err != nil || !ok {
			return Credential{}, fmt.Errorf("read credentials: %s: malformed auth of %s", file, plainKey(best))
		}
		c.Username, c.Password = user, password
	}
	if c.IdentityToken != "" && c.Username == tokenUser {
		c.Username = ""
	}
	return c, nil
}

// names are those under which registry may be written down.
func names(registry string) []string {
	switch registry {
	case "docker.io", "index.docker.io", "registry-1.docker.io":
		return []string{"docker.io", "index.docker.io", "registry-1.docker.io"}
	}
	return []string{registry}
}

// serverURL is how docker asks programs for registry.
func serverURL(registry string) string {
	if len(names(registry)) > 1 {
		return "https://index.docker.io/v1/"
	}
	return registry
}

// plainKey is a key without the scheme and the API's version that old ones have.
func plainKey(key string) string {
	key = strings.TrimPrefix(strings.TrimPrefix(key, "https://"), "http://")
	key = strings.TrimRight(key, "/")
	return strings.TrimSuffix(strings.TrimSuffix(key, "/v1"), "/v2")
}

// noCredentials is how a program says that it has none
// (github.com/docker/docker-credential-helpers/credentials/error.go).
const noCredentials = "credentials not found in native keychain"

// tokenUser is the user name of those whose secret is an identity token.
const tokenUser = "<token>"

// ask asks docker-credential-NAME, in the protocol of docker-credential-helpers:
// the server on standard input, JSON on standard output.
func ask(ctx context.Context, name, server string) (Credential, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") {
		return Credential{}, fmt.Errorf("%w: malformed name of a credential program: %q", source.ErrDenied, name)
	}
	ctx, cancel := context.WithTimeout(ctx, ProgramTime)
	defer cancel()
	program := "docker-credential-" + name
	cmd := exec.CommandContext(ctx, program, "get")
	cmd.Stdin = strings.NewReader(server)
	cmd.WaitDelay = time.Second
	var out bytes.Buffer
	cmd.Stdout = &capped{&out, 1 << 20}
	if err := cmd.Run(); err != nil {
		if strings.TrimSpace(out.String()) == noCredentials {
			return Credential{}, nil
		}
		return Credential{}, fmt.Errorf("%w: ask %s for %s: %w", source.ErrDenied, program, server, err)
	}
	var answer struct{ Username, Secret string }
	if err := json.Unmarshal(out.Bytes(), &answer); err != nil {
		return Credential{}, fmt.Errorf("%w: ask %s for %s: the answer is not JSON", source.ErrDenied, program, server)
	}
	if answer.Username == tokenUser {
		return Credential{IdentityToken: answer.Secret}, nil
	}
	return Credential{Username: answer.Username, Password: answer.Secret}, nil
}

var errTooMuch = errors.New("answer is too long")

// capped fails a write beyond so many bytes.
type capped struct {
	w    io.Writer
	left int
}

func (c *capped) Write(p []byte) (int, error) {
	if len(p) > c.left {
		return 0, errTooMuch
	}
	c.left -= len(p)
	return c.w.Write(p)
}
