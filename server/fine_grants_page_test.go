package server

import (
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"accessbroker.internal/api"
)

// Approvers read fine grants in words. Values with markup and characters that a reader would
// not see are shown harmlessly.
func TestApproversReadFineGrants(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	var details []api.AuthorizationDetail
	element := strings.Replace(refund, `["vip"]`, `["<b>&","a\u200bb"]`, 1)
	if err := json.Unmarshal([]byte(`[`+element+`,`+goodLook+`]`), &details); err != nil {
		t.Fatal(err)
	}
	r := must[*api.Request](t)(w.as(agent).Ask(t.Context(), api.Ask{Entitlement: "guarded", Scopes: []string{"read"}, AuthorizationDetails: details}))
	b := newBrowser(t, w)
	b.logIn("login/ben", "/ui/")
	_, _, page := b.visit(http.MethodGet, "/ui/requests/"+r.ID, "")
	for _, want := range []string{
		`row <code>row-1</code>: read of orders at https://guarded.acme.test as clerk`, "tool <code>refund</code>", "tool <code>look</code> without arguments",
		"amount from 0 to 50", `currency <bdi class="foreign">EUR</bdi>`, "note of at most 20 characters", "labels with at most 2 items", "&lt;b&gt;&amp;",
	} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %q", want)
		}
	}
	if strings.Contains(page, "<b>&") || strings.Contains(page, "a\u200bb") {
		t.Error("the page has markup or an invisible character of the requester")
	}
	if t.Failed() {
		t.Log(page[max(0, strings.Index(page, "Only for")):][:1500])
	}
}
