package auth_test

import (
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strings"
	"testing"

	"github.com/lacunafs/lacuna/internal/source/oci/auth"
)

func TestParseChallenges(t *testing.T) {
	type params = map[string]string
	for text, want := range map[string][]auth.Challenge{
		"":              nil,
		"Basic":         {{Scheme: "basic"}},
		`Basic realm=x`: {{Scheme: "basic", Params: params{"realm": "x"}}},
		`Bearer realm="https://auth.test/token",service="registry.test",scope="repository:a/b:pull,push"`: {
			{Scheme: "bearer", Params: params{"realm": "https://auth.test/token", "service": "registry.test", "scope": "repository:a/b:pull,push"}}},
		`Bearer realm = "x" , Service="y",`:      {{Scheme: "bearer", Params: params{"realm": "x", "service": "y"}}},
		`Negotiate, Basic realm="x"`:             {{Scheme: "negotiate"}, {Scheme: "basic", Params: params{"realm": "x"}}},
		`Negotiate dG9rZW4=, Basic realm="a, b"`: {{Scheme: "negotiate"}, {Scheme: "basic", Params: params{"realm": "a, b"}}},
		`Bearer realm="x", Basic realm="y"`:      {{Scheme: "bearer", Params: params{"realm": "x"}}, {Scheme: "basic", Params: params{"realm": "y"}}},
		`Basic realm="a\"b\\c"`:                  {{Scheme: "basic", Params: params{"realm": `a"b\c`}}},
		`, ,Basic realm="x"`:                     {{Scheme: "basic", Params: params{"realm": "x"}}},
	} {
		if got, err := auth.ParseChallenges([]string{text}); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, %v", text, got, err)
		}
	}
	for _, text := range []string{
		`"Basic"`, `Basic realm="x`, `Basic realm="x\`, `Basic realm="x"y`, `Basic realm="x" z="y"`,
		`Basic realm="x", realm="y"`, `=`, `Basic realm=@`, "Basic realm=\"x\"\x00",
	} {
		if got, err := auth.ParseChallenges([]string{text}); err == nil {
			t.Errorf("%s parsed as %+v", text, got)
		}
	}
	two, err := auth.ParseChallenges([]string{"Basic realm=x", "Bearer realm=y"})
	if err != nil || len(two) != 2 {
		t.Errorf("two headers: %+v, %v", two, err)
	}
}

// FuzzChallenge: what parses is the same when it is written down again.
func FuzzChallenge(f *testing.F) {
	for _, s := range []string{
		`Bearer realm="https://a/t",service="s",scope="repository:a:pull"`, `Negotiate dG9r=, Basic realm="\"x"`, `Basic realm=x, , Digest`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		got, err := auth.ParseChallenges([]string{s})
		if err != nil {
			return
		}
		again, err := auth.ParseChallenges([]string{write(got)})
		if err != nil || !slices.EqualFunc(got, again, func(a, b auth.Challenge) bool {
			return a.Scheme == b.Scheme && len(a.Params) == len(b.Params) && (len(a.Params) == 0 || reflect.DeepEqual(a.Params, b.Params))
		}) {
			t.Fatalf("%q: %+v, written %q: %+v, %v", s, got, write(got), again, err)
		}
	})
}

func write(all []auth.Challenge) string {
	var list []string
	for _, c := range all {
		var params []string
		for name, value := range c.Params {
			value = strings.ReplaceAll(strings.ReplaceAll(value, `\`, `\\`), `"`, `\"`)
			params = append(params, fmt.Sprintf(`%s="%s"`, name, value))
		}
		sort.Strings(params)
		list = append(list, strings.TrimSpace(c.Scheme+" "+strings.Join(params, ", ")))
	}
	return strings.Join(list, ", ")
}
