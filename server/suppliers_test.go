package server

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
)

// driveSuppliers assesses a supplier and extends its contract.
func (w *world) driveSuppliers(t *testing.T) {
	t.Helper()
	ctx, ben, sam := t.Context(), api.Suppliers{Client: w.as("login/ben")}, api.Suppliers{Client: w.as("login/sam")}
	list := must[*api.SupplierList](t)(ben.List(ctx))
	if len(list.Suppliers) != 1 || !list.Suppliers[0].Live || list.Suppliers[0].Assessment != nil {
		t.Fatalf("got %+v", list)
	}
	s := list.Suppliers[0]
	a := must[*api.Assessment](t)(ben.Assess(ctx, api.Assessing{
		Supplier: s.Name, Digest: s.Digest, Risk: "medium", ValidUntil: s.EndsAt, Evidence: "https://docs.acme.test/acme.pdf", Answers: []string{"Frankfurt"},
	}))
	if !a.Valid || a.By != "login/ben" || a.Answers[0].Answer != "Frankfurt" {
		t.Errorf("got %+v", a)
	}
	if all := must[*api.AssessmentList](t)(ben.Assessments(ctx)); len(all.Assessments) != 1 || all.Assessments[0].ID != a.ID {
		t.Errorf("got %+v", all)
	}
	until := s.EndsAt.Add(24 * time.Hour)
	x := must[*api.Extension](t)(sam.AskExtension(ctx, s.Name, api.ExtensionAsk{Until: until, Reason: "the migration takes longer"}))
	if _, err := sam.DecideExtension(ctx, s.Name, x.ID, api.ExtensionDecision{Decision: api.Approve}); api.CodeOf(err) != api.OwnRequest {
		t.Errorf("the sponsor approves: %v", err)
	}
	must[*api.Extension](t)(ben.DecideExtension(ctx, s.Name, x.ID, api.ExtensionDecision{Decision: api.Approve}))
	if s := must[*api.Supplier](t)(sam.Get(ctx, s.Name)); !s.EndsAt.Equal(until) || s.Extension.State != "approved" {
		t.Errorf("got %+v", s)
	}
}

// Strangers and workloads see no supplier.
func TestSuppliersAreSeenByThoseConcerned(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	for _, who := range []string{agent, "login/eve"} {
		list, err := api.Suppliers{Client: w.as(who)}.List(t.Context())
		if err != nil || len(list.Suppliers) != 0 {
			t.Errorf("%s sees %+v, %v", who, list, err)
		}
		if _, err := (api.Suppliers{Client: w.as(who)}).Get(t.Context(), "acme-data"); api.CodeOf(err) != api.NotFound {
			t.Errorf("%s reads the supplier: %v", who, err)
		}
	}
	list, err := api.Suppliers{Client: w.as(auditor)}.List(t.Context())
	if err != nil || len(list.Suppliers) != 1 {
		t.Errorf("an auditor sees %+v, %v", list, err)
	}
}

// The pages carry an assessment and an extension from the form to the record.
func TestSupplierPages(t *testing.T) {
	t.Parallel()
	w := newWorld(t, withPeople)
	ben, sam := newBrowser(t, w), newBrowser(t, w)
	ben.logIn("login/ben", "")
	sam.logIn("login/sam", "")
	page := ben.read("/ui/assessments")
	for _, want := range []string{"Acme Data GmbH", "Not assessed yet.", "contract in force", `aria-current="page">Suppliers`} {
		if !strings.Contains(page, want) {
			t.Errorf("the list has no %q:\n%s", want, page)
		}
	}
	page = ben.read("/ui/assessments/acme-data")
	if strings.Contains(page, "<the>") || !strings.Contains(page, "Where is &lt;the&gt; data stored?") {
		t.Errorf("the question is not escaped:\n%s", page)
	}
	form := map[string]string{
		"do": "assess", "digest": w.digestOfSupplier(t), "questions": "1", "answer.0": "Frankfurt <b>", "risk": "low",
		"evidence": "https://docs.acme.test/a.pdf", "valid_until": time.Now().AddDate(0, 1, 0).Format(time.DateOnly),
	}
	broken := map[string]string{}
	for name, value := range form {
		broken[name] = value
	}
	broken["evidence"] = "a file somewhere"
	if status, page := ben.send("/ui/assessments/acme-data", broken); status != http.StatusBadRequest || !strings.Contains(page, "evidence is an https link") || !strings.Contains(page, "Frankfurt &lt;b&gt;") {
		t.Errorf("a refused form: %d, without its reason or its contents:\n%s", status, page)
	}
	if status, page := ben.send("/ui/assessments/acme-data", form); status != http.StatusOK || !strings.Contains(page, "Your assessment is recorded") || !strings.Contains(page, "Frankfurt &lt;b&gt;") {
		t.Errorf("got %d:\n%s", status, page)
	}
	if page := sam.read("/ui/assessments/acme-data"); strings.Contains(page, "Record the assessment") || !strings.Contains(page, "Ask for an extension") {
		t.Errorf("the sponsor sees:\n%s", page)
	}
	ask := map[string]string{"do": "extend", "until": time.Now().AddDate(0, 2, 0).Format(time.DateOnly), "reason": "the migration"}
	if status, page := sam.send("/ui/assessments/acme-data", ask); status != http.StatusOK || !strings.Contains(page, "waits for the decision of another person") {
		t.Errorf("got %d:\n%s", status, page)
	}
	if page := ben.read("/ui/assessments/acme-data"); !strings.Contains(page, "Decide on the extension") {
		t.Errorf("the other person sees:\n%s", page)
	}
}

func (w *world) digestOfSupplier(t *testing.T) string {
	t.Helper()
	s, err := api.Suppliers{Client: w.as("login/ben")}.Get(t.Context(), "acme-data")
	if err != nil {
		t.Fatal(err)
	}
	return s.Digest
}

// read returns a page.
func (b *browser) read(path string) string {
	b.t.Helper()
	_, _, page := b.visit(http.MethodGet, path, "")
	return page
}

// send sends a form, and follows where it leads.
func (b *browser) send(path string, fields map[string]string) (status int, page string) {
	b.t.Helper()
	form := url.Values{}
	for name, value := range fields {
		form.Set(name, value)
	}
	status, where, page := b.visit(http.MethodPost, path, form.Encode())
	if status == http.StatusSeeOther {
		status, _, page = b.visit(http.MethodGet, where, "")
	}
	return status, page
}
