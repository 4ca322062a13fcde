package oci

import (
	"errors"
	"slices"
	"strings"
	"testing"

	v1 "github.com/opencontainers/image-spec/specs-go/v1"
)

const someDigest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

func TestParseReference(t *testing.T) {
	there := func(path string) bool {
		return slices.Contains([]string{"/a", "/a:b", "/x.tar", "rel", "C:"}, path)
	}
	for text, want := range map[string]string{
		"busybox":                                   "docker.io/library/busybox:latest",
		"team/app:1":                                "docker.io/team/app:1",
		"docker.io/busybox":                         "docker.io/library/busybox:latest",
		"index.docker.io/team/app":                  "docker.io/team/app:latest",
		"localhost/app":                             "localhost/app:latest",
		"localhost:5000/a/b/c:v1":                   "localhost:5000/a/b/c:v1",
		"[::1]:5000/a":                              "[::1]:5000/a:latest",
		"registry.test/app@" + someDigest:           "registry.test/app@" + someDigest,
		"registry.test/app:1@" + someDigest:         "registry.test/app@" + someDigest,
		"oci-layout:/a":                             "oci-layout:/a",
		"oci-layout:/a:b":                           "oci-layout:/a:b",   // a directory of that name
		"oci-layout:/a:b:c":                         "oci-layout:/a:b:c", // its tag c
		"oci-layout:/a:1":                           "oci-layout:/a:1",
		"oci-layout:/a@" + someDigest:               "oci-layout:/a@" + someDigest,
		"oci-layout:rel:1":                          "oci-layout:rel:1",
		"oci-layout:/none:1":                        "oci-layout:/none:1",
		"docker-archive:/x.tar":                     "docker-archive:/x.tar",
		"docker-archive:/x.tar:registry.test:5/a:1": "docker-archive:/x.tar:registry.test:5/a:1",
	} {
		if got, err := parseReference(text, there); err != nil || got.String() != want {
			t.Errorf("%s: %s, %v", text, got, err)
		}
	}
	for text, want := range map[string]string{"oci-layout:/a:b": "", "oci-layout:/a:b:c": "c", "oci-layout:/a:1": "1", "oci-layout:/none:1": "1",
		"docker-archive:/x.tar:registry.test:5/a:1": "registry.test:5/a:1", "docker-archive:/x.tar": ""} {
		if got, err := parseReference(text, there); err != nil || got.tag != want {
			t.Errorf("%s: tag %q, %v", text, got.tag, err)
		}
	}
	for _, text := range []string{"", ":", "Upper/case", "https://registry.test/app", "a@sha256:12", "registry.test/", "a b", "oci-layout:", "docker-archive:"} {
		if got, err := parseReference(text, there); err == nil {
			t.Errorf("%q: %s", text, got)
		}
	}
}

// What is wrong is said, and nobody is asked.
func TestMalformedReferences(t *testing.T) {
	for text, want := range map[string]string{
		"":                                   "it is empty",
		" ":                                  "it is empty",
		"registry.test/App:1":                "lower case",
		"Foo/Bar":                            "lower case",
		"App":                                "lower case",
		"registry.test/app:":                 `"" is no tag`,
		"registry.test/app:-x":               `"-x" is no tag`,
		"registry.test/app:a b":              "a blank",
		"registry.test/app@sha256:abc":       "its digest",
		"registry.test/app@md5:abc":          "its digest",
		"a@" + someDigest + "@" + someDigest: "two digests",
		"docker://registry.test/app":         "without docker://",
		"oci:/x":                             "not read from oci:",
		"dir:/tmp":                           "not read from dir:",
		"containers-storage:a/b":             "not read from containers-storage:",
		"/mnt/x":                             "it is a path",
		"./x":                                "it is a path",
		"registry.test//app":                 "no registry and repository",
		"registry.test:99999/app":            "no registry and repository",
		"registry.test/a..b":                 "no registry and repository",
		"registry.test/":                     "no registry and repository",
		"oci-layout:":                        "a path is missing",
		"docker-archive:":                    "a path is missing",
		"oci-layout:/x:":                     "the tag is empty",
	} {
		err := CheckReference(text)
		if !errors.Is(err, ErrReference) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", text, err)
		}
	}
	if err := errors.Join(CheckReference("registry.test:5000/a/b__c:V1.0"), CheckPlatform(""), CheckPlatform("linux/arm/v7")); err != nil {
		t.Error(err)
	}
	for _, text := range []string{"linux", "linux/", "a b/c", "linux/arm/v7/x", "/"} {
		if err := CheckPlatform(text); !errors.Is(err, ErrPlatform) {
			t.Errorf("platform %q: %v", text, err)
		}
	}
}

// FuzzReference: what parses is the same when its full form is parsed.
func FuzzReference(f *testing.F) {
	for _, s := range []string{"busybox", "localhost:5000/a:b", "a.b/c@" + someDigest, "oci-layout:/a:b", "docker-archive:x:y/z:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		none := func(string) bool { return false }
		got, err := parseReference(s, none)
		if err != nil {
			return
		}
		if (got.registry == "") == (got.path == "") || got.registry != "" && got.tag == "" && got.digest == "" {
			t.Fatalf("%q: %+v", s, got)
		}
		again, err := parseReference(got.String(), none)
		if err != nil || again != got {
			t.Fatalf("%q: %+v, again %+v, %v", s, got, again, err)
		}
	})
}

func TestPlatforms(t *testing.T) {
	list := func(all ...string) (ds []v1.Descriptor) {
		for _, s := range all {
			parts := append(strings.Split(s, "/"), "")
			ds = append(ds, v1.Descriptor{MediaType: s, Platform: &v1.Platform{OS: parts[0], Architecture: parts[1], Variant: parts[2]}})
		}
		return ds
	}
	beside := append(list("linux/amd64"), list("linux/amd64")...)
	beside[0].MediaType, beside[0].ArtifactType = "an index", "application/vnd.amazon.soci.index.v2+json"
	for _, c := range []struct {
		asked string
		there []v1.Descriptor
		want  string
	}{
		{"linux/amd64", list("linux/arm64", "linux/amd64"), "linux/amd64"},
		{"linux/amd64", list("linux/amd64/v3", "linux/amd64/v1"), "linux/amd64/v1"},
		{"linux/amd64", list("linux/amd64/v3"), ""},
		{"linux/amd64/v4", list("linux/amd64", "linux/amd64/v3"), "linux/amd64/v3"},
		{"linux/x86_64", list("windows/amd64", "linux/amd64"), "linux/amd64"},
		{"linux/arm64", list("linux/arm/v7", "linux/arm64/v8"), "linux/arm64/v8"},
		{"linux/aarch64/v8", list("linux/arm64"), "linux/arm64"},
		{"linux/arm", list("linux/arm/v6", "linux/arm/v5"), "linux/arm/v6"},
		{"linux/arm/v6", list("linux/arm/v7", "linux/arm/v5"), "linux/arm/v5"},
		{"linux/arm/v5", list("linux/arm/v7"), ""},
		{"linux/amd64", list("unknown/unknown"), ""},
		{"linux/amd64", beside, "linux/amd64"},
		{"linux/amd64", beside[:1], ""},
		{"linux/amd64", []v1.Descriptor{{MediaType: "only"}}, "only"},
		{"linux/amd64", nil, ""},
		{"linux/amd64", []v1.Descriptor{beside[0], {MediaType: "only"}, list("unknown/unknown")[0]}, "only"},
		{"linux/amd64", []v1.Descriptor{{MediaType: "only", Platform: &v1.Platform{}}, beside[0]}, "only"},
		{"linux/amd64", []v1.Descriptor{{MediaType: "one"}, {MediaType: "another"}}, ""},
		{"linux/amd64", append(list("linux/arm64"), v1.Descriptor{MediaType: "beside"}), ""},
	} {
		p, err := parsePlatform(c.asked)
		if err != nil {
			t.Fatal(err)
		}
		got, err := choose(c.there, p)
		if got.MediaType != c.want || (err != nil) != (c.want == "") || err != nil && !errors.Is(err, ErrNoPlatform) {
			t.Errorf("%s of %v: %s, %v", c.asked, c.there, got.MediaType, err)
		}
	}
	for _, bad := range []string{"linux", "linux/", "/amd64", "a/b/c/d", "linux//v7"} {
		if p, err := parsePlatform(bad); err == nil {
			t.Errorf("%s: %v", bad, p)
		}
	}
}

func TestManifestsThatAreRefused(t *testing.T) {
	d := `{"mediaType":"x","digest":"` + someDigest + `","size":1}`
	for text, want := range map[string]string{
		"":                    "not JSON",
		"[]":                  "not JSON",
		`{"schemaVersion":1}`: "schema 1",
		`{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v1+prettyjws"}`: "schema 1",
		`{"schemaVersion":2}`:                                   "neither",
		`{"schemaVersion":3,"config":` + d + `}`:                "schema version 3",
		`{"schemaVersion":2,"config":` + d + `,"manifests":[]}`: "neither",
		`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"layers":[]}`:                    "both",
		`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":` + d + `,"manifests":[` + d + `]}`: "both",
		`{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}`:                                            "without a configuration",
		`{"schemaVersion":2,"mediaType":"application/x"}`:                                                                         "application/x",
		`{"schemaVersion":2,"config":` + d + `,"layers":[{"digest":"sha256:../../x","size":1}]}`:                                  "malformed digest",
		`{"schemaVersion":2,"config":` + d + `,"layers":[{"digest":"` + someDigest + `","size":-1}]}`:                             "size -1",
		`{"schemaVersion":2,"config":{"digest":"md5:d41d8cd98f00b204e9800998ecf8427e","size":1}}`:                                 "malformed digest",
	} {
		if _, _, err := parseDocument([]byte(text), ""); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if _, isIndex, err := parseDocument([]byte(`{"schemaVersion":2,"manifests":[]}`), "application/json"); err != nil || !isIndex {
		t.Errorf("an index without a media type: %v", err)
	}
	config := func(n int) []byte {
		ids := strings.TrimSuffix(strings.Repeat(`"`+someDigest+`",`, n), ",")
		return []byte(`{"os":"linux","architecture":"amd64","rootfs":{"type":"layers","diff_ids":[` + ids + `]}}`)
	}
	layer := func(kind string) document {
		return document{Config: &v1.Descriptor{}, Layers: []v1.Descriptor{{MediaType: kind, Digest: someDigest, Size: 1}}}
	}
	for kind, want := range map[string]string{
		v1.MediaTypeImageLayerZstd:                                     "",
		"application/vnd.docker.image.rootfs.diff.tar.gzip":            "",
		"application/vnd.docker.image.rootfs.foreign.diff.tar.gzip":    "foreign layer",
		"application/vnd.oci.image.layer.nondistributable.v1.tar+gzip": "foreign layer",
		"application/vnd.oci.image.layer.v1.tar+gzip+encrypted":        "is no layer",
		"": "is no layer",
	} {
		_, p, err := layersOf(layer(kind), config(1))
		if want == "" && (err != nil || p.String() != "linux/amd64") || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, %v", kind, p, err)
		}
	}
	if _, _, err := layersOf(layer(v1.MediaTypeImageLayer), config(2)); !errors.Is(err, ErrUnsupported) {
		t.Errorf("more DiffIDs than layers: %v", err)
	}
	if _, _, err := layersOf(document{Config: &v1.Descriptor{}}, []byte("{}")); !errors.Is(err, ErrUnsupported) {
		t.Errorf("no image: %v", err)
	}
}

// FuzzManifest: no panic, and what is accepted is whole.
func FuzzManifest(f *testing.F) {
	f.Add(`{"schemaVersion":2,"config":{"digest":"`+someDigest+`","size":1},"layers":[{"digest":"`+someDigest+`","size":1}]}`, "")
	f.Add(`{"schemaVersion":2,"manifests":[{"digest":"`+someDigest+`","size":1,"platform":{"os":"linux","architecture":"amd64"}}]}`, v1.MediaTypeImageIndex)
	f.Fuzz(func(t *testing.T, text, kind string) {
		d, isIndex, err := parseDocument([]byte(text), kind)
		if err != nil {
			return
		}
		if isIndex != (d.Config == nil) {
			t.Fatalf("%+v", d)
		}
		for _, e := range append(d.Layers, d.Manifests...) {
			if e.Digest.Validate() != nil || e.Size < 0 {
				t.Fatalf("%+v", e)
			}
		}
	})
}
