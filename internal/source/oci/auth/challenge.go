package auth

import (
	"errors"
	"strings"
)

// Challenge is one of the ways to log in that a server offers.
type Challenge struct {
	Scheme string            // in lower case
	Params map[string]string // names in lower case; nil: none, or a token68
}

var errChallenge = errors.New("malformed WWW-Authenticate header")

// ParseChallenges reads a WWW-Authenticate header (RFC 9110 section 11.6.1),
// which may have several challenges in one value.
func ParseChallenges(values []string) ([]Challenge, error) {
	var all []Challenge
	for _, v := range values {
		p := parser{rest: v}
		for p.commas(); p.rest != ""; p.commas() {
			c, err := p.challenge()
			if err != nil {
				return nil, err
			}
			all = append(all, c)
		}
	}
	return all, nil
}

type parser struct{ rest string }

func (p *parser) spaces() { p.rest = strings.TrimLeft(p.rest, " \t") }

// commas skips what may stand between elements of a list; empty elements are
// allowed there (section 5.6.1.2).
func (p *parser) commas() { p.rest = strings.TrimLeft(p.rest, " \t,") }

func (p *parser) token() string {
	i := 0
	for i < len(p.rest) && isTokenChar(p.rest[i]) {
		i++
	}
	t := p.rest[:i]
	p.rest = p.rest[i:]
	return t
}

// isTokenChar is tchar of RFC 9110 section 5.6.2.
func isTokenChar(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

func (p *parser) challenge() (Challenge, error) {
	c := Challenge{Scheme: strings.ToLower(p.token())}
	if c.Scheme == "" || p.rest != "" && strings.IndexByte(" \t,", p.rest[0]) < 0 {
		return c, errChallenge
	}
	p.spaces()
	if p.token68() {
		return c, nil
	}
	for {
		// A token without "=" begins the next challenge.
		before := p.rest
		p.commas()
		name := strings.ToLower(p.token())
		p.spaces()
		if name == "" || !strings.HasPrefix(p.rest, "=") {
			p.rest = before
			return c, nil
		}
		p.rest = p.rest[1:]
		p.spaces()
		value, err := p.value()
		if err != nil {
			return c, err
		}
		if c.Params == nil {
			c.Params = map[string]string{}
		}
		if _, twice := c.Params[name]; twice {
			return c, errChallenge
		}
		c.Params[name] = value
		p.spaces()
		if p.rest != "" && p.rest[0] != ',' {
			return c, errChallenge
		}
	}
}

// token68 skips the other form that a challenge may have (section 11.2); nobody
// who speaks to registries has a use for what it says.
func (p *parser) token68() bool {
	i := 0
	for i < len(p.rest) && (isTokenChar(p.rest[i]) || p.rest[i] == '/') {
		i++
	}
	j := i
	for j < len(p.rest) && p.rest[j] == '=' {
		j++
	}
	after := strings.TrimLeft(p.rest[j:], " \t")
	// A parameter has its value behind the "=".
	if i == 0 || after != "" && after[0] != ',' {
		return false
	}
	if i == j && !strings.ContainsRune(p.rest[:i], '/') && after != "" {
		return false // a scheme of its own, without parameters
	}
	p.rest = after
	return true
}

func (p *parser) value() (string, error) {
	if !strings.HasPrefix(p.rest, `"`) {
		t := p.token()
		if t == "" {
			return "", errChallenge
		}
		return t, nil
	}
	var b strings.Builder
	for i := 1; i < len(p.rest); i++ {
		switch c := p.rest[i]; c {
		case '"':
			p.rest = p.rest[i+1:]
			return b.String(), nil
		case '\\':
			if i++; i == len(p.rest) {
				return "", errChallenge
			}
			b.WriteByte(p.rest[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", errChallenge
}
