package server

import (
	"net/http"
	"testing"

	"accessbroker.internal/broker"
)

// A status list has its media type, may be read by any page, and is revalidated by caches.
func TestStatusListIsPublic(t *testing.T) {
	t.Parallel()
	w := newPublicWorld(t, nil)
	resp, body := w.fetch("/oauth2/status/"+statusListName, "Origin", "https://app.test")
	h := resp.Header
	if resp.StatusCode != http.StatusOK || h.Get("Content-Type") != "application/statuslist+jwt" || h.Get("Cache-Control") != "public, no-cache" ||
		h.Get("Access-Control-Allow-Origin") != "*" || string(body) != "header.claims.signature" {
		t.Errorf("got %s %v %s", resp.Status, h, body)
	}
	if again, _ := w.fetch("/oauth2/status/"+statusListName, "If-None-Match", h.Get("ETag")); again.StatusCode != http.StatusNotModified {
		t.Errorf("with its entity tag: got %s, want 304", again.Status)
	}
	if resp, body := w.fetch("/oauth2/status"); resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != "application/json" {
		t.Errorf("the lists: got %s %v %s", resp.Status, resp.Header, body)
	}
}

// An unknown list is not found, and lists of the past are not implemented (section 8.4 of the
// draft).
func TestStatusListThatIsNotThere(t *testing.T) {
	t.Parallel()
	w := newPublicWorld(t, nil)
	for path, want := range map[string]int{
		"/oauth2/status/0cfvrr2ghtomv2mg9jd7kfs0q1":             http.StatusNotFound,
		"/oauth2/status/x":                                      http.StatusNotFound,
		"/oauth2/status/" + statusListName + "?time=1795940000": http.StatusNotImplemented,
	} {
		if resp, body := w.fetch(path); resp.StatusCode != want {
			t.Errorf("%s: got %s %s, want %d", path, resp.Status, body, want)
		}
	}
}

// The metadata names the lists only if tokens have places in them.
func TestMetadataNamesStatusLists(t *testing.T) {
	t.Parallel()
	w := newPublicWorld(t, nil)
	if at := w.metadataBody().StatusLists; at != "" {
		t.Errorf("no token has a place in a list: got %s", at)
	}
	rules := testRules()
	rules.Catalogue["tickets"].StatusList = true
	if err := w.cfg.Broker.SetRules(t.Context(), broker.Caller{}, rules); err != nil {
		t.Fatal(err)
	}
	if at := w.metadataBody().StatusLists; at != "https://broker.acme.test/oauth2/status" {
		t.Errorf("got %q", at)
	}
}
