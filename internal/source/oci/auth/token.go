package auth

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/ranged"
)

// tokenLimit is how large a token server's answer may be.
const tokenLimit = 1 << 20

// token is what a token server answers (distribution's docs/content/spec/auth/token.md).
type token struct {
	Token       string `json:"token"`
	AccessToken string `json:"access_token"`
	ExpiresIn   int64  `json:"expires_in"` // seconds
}

func basic(c Credential) string {
	return "Basic " + base64.StdEncoding.EncodeToString([]byte(c.Username+":"+c.Password))
}

// fetch gets a token from the server that the challenge ch names.
func (s *Session) fetch(ctx context.Context, ch Challenge, c Credential) (token, error) {
	realm, err := s.realm(ch)
	if err != nil {
		return token{}, err
	}
	scope := s.scope(ch.Params["scope"])
	if c.IdentityToken != "" {
		t, err := s.exchange(ctx, realm, ch.Params["service"], scope, c.IdentityToken)
		var status *ranged.StatusError
		// Token servers without OAuth 2 have nothing for POST.
		if !errors.As(err, &status) || status.Status != http.StatusNotFound && status.Status != http.StatusMethodNotAllowed {
			return t, err
		}
	}
	q := realm.Query()
	q["scope"] = strings.Fields(scope)
	if service := ch.Params["service"]; service != "" {
		q.Set("service", service)
	}
	h := http.Header{}
	if c.Username != "" || c.Password != "" {
		h.Set("Authorization", basic(c))
	}
	u := *realm
	u.RawQuery = q.Encode()
	var r ranged.Redirects
	r.Origin = func(ctx context.Context, h http.Header) (*ranged.Answer, error) {
		return s.Sender.Send(ctx, s.request(&u, h))
	}
	r.Target = func(ctx context.Context, next *url.URL, h http.Header) (*ranged.Answer, error) {
		if next.Host != u.Host || next.Scheme != u.Scheme {
			h = http.Header{}
		}
		return s.Sender.Send(ctx, s.request(next, h))
	}
	return readToken(r.Get(ctx, h))
}

// scope is what a token is asked for (distribution's docs/content/spec/auth/scope.md):
// what the registry has said that the request before needs, or else the repository, and
// the session's actions in either. A token for reading is not of use for a push, and not
// all registries ask for another one then.
func (s *Session) scope(asked string) string {
	all := strings.Fields(asked)
	if len(all) == 0 {
		all = []string{"repository:" + s.Repository + ":pull"}
	}
	for i, scope := range all {
		end := strings.LastIndexByte(scope, ':')
		if end < 0 || !strings.HasPrefix(scope, "repository:") {
			continue
		}
		actions := strings.Split(scope[end+1:], ",")
		for _, action := range s.Actions {
			if !slices.Contains(actions, action) {
				actions = append(actions, action)
			}
		}
		all[i] = scope[:end+1] + strings.Join(actions, ",")
	}
	return strings.Join(all, " ")
}

func (s *Session) request(u *url.URL, h http.Header) *http.Request {
	h = h.Clone()
	h.Set("User-Agent", s.UserAgent)
	return ranged.NewRequest(u, h)
}

// exchange is the OAuth 2 flow (distribution's docs/content/spec/auth/oauth.md).
func (s *Session) exchange(ctx context.Context, realm *url.URL, service, scope, identity string) (token, error) {
	form := url.Values{
		"grant_type": {"refresh_token"}, "refresh_token": {identity},
		"service": {service}, "scope": {scope}, "client_id": {s.UserAgent},
	}.Encode()
	req := s.request(realm, http.Header{"Content-Type": {"application/x-www-form-urlencoded"}})
	req.Method = http.MethodPost
	req.Body, req.ContentLength = io.NopCloser(strings.NewReader(form)), int64(len(form))
	req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(form)), nil }
	return readToken(s.Sender.Send(ctx, req))
}

func readToken(a *ranged.Answer, err error) (t token, _ error) {
	if err != nil {
		return t, err
	}
	if a.StatusCode != http.StatusOK {
		return t, a.Refuse(ranged.ErrStatus)
	}
	data, err := io.ReadAll(io.LimitReader(a.Body, tokenLimit))
	if err := errors.Join(err, a.Body.Close()); err != nil {
		return t, err
	}
	// The answer's text is a secret.
	if json.Unmarshal(data, &t) != nil {
		return t, fmt.Errorf("%w: the token server's answer is not JSON", source.ErrNotBytes)
	}
	if t.Token == "" {
		t.Token = t.AccessToken
	}
	if t.Token == "" || strings.ContainsFunc(t.Token, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return t, fmt.Errorf("%w: no token in the token server's answer", source.ErrNotBytes)
	}
	return t, nil
}

// life is how long t may be used without asking: nine tenths of what its server says.
// Where it says nothing the specification has 60 s; a token that lives longer
// is refused by nobody, so then the registry's own answer decides.
func (t token) life() time.Duration {
	const longest = 24 * 3600
	return time.Duration(min(t.ExpiresIn, longest)) * time.Second * 9 / 10
}

// realm is the token server's address. The registry chooses it, so it may not
// choose one without encryption unless it has none itself, nor a link-local
// address, where clouds keep the machine's own secrets.
func (s *Session) realm(ch Challenge) (*url.URL, error) {
	u, err := url.Parse(ch.Params["realm"])
	switch {
	case err != nil, u.Hostname() == "", u.Scheme != "http" && u.Scheme != "https", u.User != nil:
		return nil, fmt.Errorf("%w: %s names no valid token server", source.ErrNotBytes, s.Registry)
	case u.Scheme == "http" && !s.Insecure():
		return nil, fmt.Errorf("%w: %s names a token server without encryption: %s", source.ErrDenied, s.Registry, u.Host)
	}
	if ip := net.ParseIP(u.Hostname()); ip != nil && ip.IsLinkLocalUnicast() {
		return nil, fmt.Errorf("%w: %s names a token server with a link-local address: %s", source.ErrDenied, s.Registry, u.Host)
	}
	return u, nil
}
