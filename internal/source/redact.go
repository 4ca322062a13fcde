package source

import (
	"net/url"
	"strings"
)

const hidden = "xxxxx"

// Redact returns rawURL as messages, logs and files may show it: without user
// name and password, with every query value hidden (signatures, tokens and
// credentials come under any name), and without fragment. All URLs that this
// project prints go through it. What cannot be parsed is not shown at all.
func Redact(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "(a URL that cannot be parsed)"
	}
	return RedactURL(u)
}

// RedactURL is Redact for a parsed URL, which it leaves as it is.
func RedactURL(u *url.URL) string {
	r := *u
	r.Fragment, r.RawFragment = "", ""
	if r.User != nil {
		r.User = url.User(hidden)
	}
	if r.Opaque != "" {
		r.Opaque = hidden
	}
	if r.RawQuery != "" {
		params := strings.FieldsFunc(r.RawQuery, func(c rune) bool { return c == '&' || c == ';' })
		for i, p := range params {
			name, _, named := strings.Cut(p, "=")
			if !named {
				params[i] = hidden // a bare word may be the secret itself
				continue
			}
			params[i] = name + "=" + hidden
		}
		r.RawQuery = strings.Join(params, "&")
	}
	return r.String()
}
