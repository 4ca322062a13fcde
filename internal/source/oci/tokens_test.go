package oci_test

import (
	"strings"
	"sync"
	"testing"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
	"github.com/lacunafs/lacuna/internal/source/retry"
	"github.com/lacunafs/lacuna/internal/source/sourcetest"
)

func token(q ocitest.Request) bool { return q.Server == "token" }

// Readers in between wait, and find the right bytes once a token is good again.
func TestTokensThatAreBadForAWhile(t *testing.T) {
	data := sourcetest.Bytes(1 << 20)
	for name, trouble := range map[string]func(*ocitest.Registry){
		"bad tokens":      func(r *ocitest.Registry) { r.BadTokens(2) },
		"server is ill":   func(r *ocitest.Registry) { r.TokenServerIll(2) },
		"one of each":     func(r *ocitest.Registry) { r.BadTokens(1); r.TokenServerIll(1) },
		"known life":      func(r *ocitest.Registry) { r.TokenLife(1); r.BadTokens(2) },
		"with a redirect": func(r *ocitest.Registry) { r.RedirectBlobs(); r.ExpireAddresses(); r.BadTokens(2) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := ocitest.New(t)
			ref := r.Push(t, "app:1", ocitest.Image(t, data))
			r.WantToken("", "")
			b := retry.Wrap(mustBlob(t, mustOpen(t, ref, options(t)), 0), retry.Policy{})
			sourcetest.MustRead(t, b, data, 0, 1000)
			before := r.Count(token)
			r.ExpireTokens()
			trouble(r)
			var all sync.WaitGroup
			for i := range int64(40) {
				all.Go(func() { mustEnd(t, b, data, i*1000, 1000, nil) })
			}
			all.Wait()
			if n := r.Count(token) - before; n > 4 {
				t.Errorf("%d requests for tokens", n)
			}
		})
	}
}

// The first token of all is bad.
func TestFirstTokenIsBad(t *testing.T) {
	t.Parallel()
	data := sourcetest.Bytes(5000)
	r := ocitest.New(t)
	ref := r.Push(t, "app:1", ocitest.Image(t, data))
	r.WantToken("", "")
	r.BadTokens(1)
	var img *oci.Image
	err := retry.Do(t.Context(), retry.Policy{Attempts: 4}, func() (err error) {
		img, err = oci.Open(t.Context(), ref, options(t))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := img.Close(); err != nil {
		t.Error(err)
	}
}

// Who is denied for good is told so soon, and asks for few tokens.
func TestTokensThatStayBad(t *testing.T) {
	t.Parallel()
	data := sourcetest.Bytes(1 << 20)
	r := ocitest.New(t)
	ref := r.Push(t, "app:1", ocitest.Image(t, data))
	r.WantToken("", "")
	b := retry.Wrap(mustBlob(t, mustOpen(t, ref, options(t)), 0), retry.Policy{})
	before := r.Count(token)
	r.ExpireTokens()
	r.BadTokens(1000)
	var all sync.WaitGroup
	for i := range int64(20) {
		all.Go(func() { mustEnd(t, b, data, i*1000, 1000, source.ErrDenied) })
	}
	all.Wait()
	_, err := sourcetest.Read(t.Context(), b, 0, 1000)
	if err == nil || source.Temporary(err) || !strings.Contains(err.Error(), r.Host()+": 401 unauthorized") {
		t.Errorf("error %v", err)
	}
	if n := r.Count(token) - before; n > 6 {
		t.Errorf("%d requests for tokens", n)
	}
	t.Logf("%d requests for tokens; %v", r.Count(token)-before, err)
}
