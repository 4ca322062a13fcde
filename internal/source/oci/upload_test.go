package oci_test

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/lacunafs/lacuna/internal/source"
	"github.com/lacunafs/lacuna/internal/source/oci"
	"github.com/lacunafs/lacuna/internal/source/oci/ocitest"
)

// uploads is a registry that takes uploads as it is told.
func uploads(t *testing.T, location string, put int) (*ocitest.Registry, *oci.Upload) {
	t.Helper()
	r := ocitest.NewFor(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if _, err := io.Copy(io.Discard, q.Body); err != nil {
			return // it was broken off
		}
		switch q.Method {
		case http.MethodPost:
			if location != "" {
				w.Header().Set("Location", location)
			}
			w.WriteHeader(http.StatusAccepted)
		case http.MethodPut:
			w.WriteHeader(put)
		case http.MethodDelete:
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	u, err := oci.OpenUpload(r.Host()+"/app:1", options(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := u.Close(); err != nil {
			t.Error(err)
		}
	})
	return r, u
}

var errBody = errors.New("the body breaks")

// An upload that does not go on is ended, whoever's fault it is; one that has gone well
// is not.
func TestUploadThatBreaksIsEnded(t *testing.T) {
	blob := v1.Descriptor{Digest: "sha256:1fa184507e1a86954e7ad75921d88426986d9a418c7c43afd324c844eef23709", Size: 10}
	for what, c := range map[string]struct {
		status int
		body   io.Reader
		want   error
		ended  int
	}{
		"good":           {http.StatusCreated, strings.NewReader("0123456789"), nil, 0},
		"refused":        {http.StatusBadRequest, strings.NewReader("0123456789"), nil, 1},
		"the body fails": {http.StatusCreated, io.MultiReader(strings.NewReader("0123"), &failing{errBody}), errBody, 1},
	} {
		t.Run(what, func(t *testing.T) {
			r, u := uploads(t, "/v2/app/blobs/uploads/7?state=x", c.status)
			err := u.Blob(t.Context(), blob, c.body)
			if (err == nil) != (what == "good") || c.want != nil && !errors.Is(err, c.want) {
				t.Error(err)
			}
			n := r.Count(func(q ocitest.Request) bool {
				return q.Method == http.MethodDelete && q.Path == "/v2/app/blobs/uploads/7" && q.Query.Get("state") == "x"
			})
			if n != c.ended {
				t.Errorf("%d requests to end it", n)
			}
		})
	}
}

// Where a registry does not say where to upload to, nothing is uploaded.
func TestUploadToNowhere(t *testing.T) {
	r, u := uploads(t, "", http.StatusCreated)
	err := u.Blob(t.Context(), v1.Descriptor{Digest: "sha256:1fa184507e1a86954e7ad75921d88426986d9a418c7c43afd324c844eef23709", Size: 1}, strings.NewReader("x"))
	if !errors.Is(err, source.ErrNotBytes) || r.Count(func(q ocitest.Request) bool { return q.Method != http.MethodPost }) > 0 {
		t.Error(err)
	}
}

// failing is a body that does not come to its end.
type failing struct{ err error }

func (f *failing) Read([]byte) (int, error) { return 0, f.err }
