package brokertest

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"accessbroker.internal/api"
	"accessbroker.internal/audit"
	"accessbroker.internal/broker"
)

const scimOperator = `
scim:
  corp: {provider: login, subject: externalId, clients: ["spiffe://acme.test/provisioner"], stale_after: 24h}
  partners: {provider: partner, subject: externalId, unknown: claims, stale_after: 24h}
`

const scimPolicies = `
@id("ops-read")
permit (principal in Group::"ops", action == Action::"request", resource == Entitlement::"tickets-api")
when { ["tickets:read"].containsAll(context.scopes) };

@id("people-close")
@approval("1 of dba")
permit (principal is Person, action == Action::"request", resource == Entitlement::"tickets-api")
when { context.scopes.contains("tickets:close") };

@id("people-comment")
@approval("1 of manager")
permit (principal is Person, action == Action::"request", resource == Entitlement::"tickets-api")
when { ["tickets:comment"].containsAll(context.scopes) };
`

const scimGroups = `ops: {claims: [{provider: login, group: Ops}]}
dba: {claims: [{provider: login, group: DBA}]}
`

// A scimWorld is a broker whose people two sources provision.
type scimWorld struct {
	*Broker
	t       *testing.T
	login   *provider
	corp    *scimClient
	partner *scimClient
}

func newSCIMWorld(t *testing.T) *scimWorld {
	t.Helper()
	login, partner := newProvider(t, "ana", "broker"), newProvider(t, "ana", "broker-at-partner")
	b := startBroker(t, nil, files{operator: scimOperator, policies: scimPolicies, groups: scimGroups}, login.config("login"), partner.config("partner"))
	login.places[b.URL+"/ui/login/login/callback"] = true
	partner.places[b.URL+"/ui/login/partner/callback"] = true
	w := &scimWorld{Broker: b, t: t, login: login}
	w.corp, w.partner = w.scimClient("corp"), w.scimClient("partners")
	return w
}

// session logs a person in.
func (w *scimWorld) session(person string) *api.Client {
	w.t.Helper()
	w.login.person = person
	session := ""
	Eventually(w.t, "the session of "+person, func() bool { // no one logs in while an end is under way
		_, session = w.browse("/ui/login?provider=login")
		return session != ""
	})
	return w.as(session)
}

// A scimClient provisions one source.
type scimClient struct {
	t     *testing.T
	http  *http.Client
	url   string
	token string
}

func (w *scimWorld) scimClient(source string) *scimClient {
	w.t.Helper()
	operator := broker.Self(broker.Identity{ID: "admin-socket/0", Kind: broker.KindOperator}, time.Now())
	made, err := w.service.NewSCIMToken(w.t.Context(), operator, source, time.Hour)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Secret(made.Token)
	return &scimClient{w.t, w.client(nil).HTTP, w.URL + "/scim/v2", made.Token}
}

// call sends JSON, or nothing if body is empty, and returns the status and the answer.
func (c *scimClient) call(method, path, body string, headers ...string) (int, map[string]any) {
	c.t.Helper()
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.url+path, strings.NewReader(body))
	if err != nil {
		c.t.Fatal(err)
	}
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/scim+json")
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := c.http.Do(req)
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatal(err)
	}
	var answer map[string]any
	if len(bytes.TrimSpace(text)) > 0 {
		if err := json.Unmarshal(text, &answer); err != nil {
			c.t.Fatalf("%s %s: %v\n%s", method, path, err, text)
		}
	}
	return resp.StatusCode, answer
}

// must is call that fails the test unless the status is the expected one.
func (c *scimClient) must(want int, method, path, body string, headers ...string) map[string]any {
	c.t.Helper()
	status, answer := c.call(method, path, body, headers...)
	if status != want {
		c.t.Fatalf("%s %s: got %d %v, want %d", method, path, status, answer, want)
	}
	return answer
}

// user creates a user and returns its id.
func (c *scimClient) user(name string) string {
	c.t.Helper()
	answer := c.must(http.StatusCreated, "POST", "/Users", fmt.Sprintf(`{"schemas":["urn:ietf:params:scim:schemas:core:2.0:User"],"userName":"%[1]s@acme.test","externalId":%[1]q,"active":true}`, name))
	return answer["id"].(string)
}

func (c *scimClient) group(name string, members ...string) string {
	c.t.Helper()
	list := []any{}
	for _, id := range members {
		list = append(list, map[string]string{"value": id})
	}
	text, err := json.Marshal(map[string]any{"schemas": []string{"urn:ietf:params:scim:schemas:core:2.0:Group"}, "displayName": name, "members": list})
	if err != nil {
		c.t.Fatal(err)
	}
	return c.must(http.StatusCreated, "POST", "/Groups", string(text))["id"].(string)
}

// patch sends operations, and returns the status.
func (c *scimClient) patch(path, operations string, headers ...string) (int, map[string]any) {
	c.t.Helper()
	return c.call("PATCH", path, `{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":`+operations+`}`, headers...)
}

func read() api.Ask { return api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:read"}} }

// ended waits until a lease has ended because of a fact.
func (w *scimWorld) ended(lease string) {
	w.t.Helper()
	Eventually(w.t, "the end of the lease", func() bool {
		return slices.ContainsFunc(w.Records(), func(r audit.Record) bool {
			return (r.Kind == audit.LeaseRevoked || r.Kind == audit.LeaseRevoking) && r.Lease != nil && r.Lease.ID == lease && r.End.How == broker.EndFact
		})
	})
}

// hasEnded reports whether a call was refused because its person has ended: by the fact, or
// because the session is closed.
func hasEnded(err error) bool {
	return errors.Is(err, api.FactEnded) || errors.Is(err, api.Unauthenticated)
}

// A provider with a directory governs its people: who is unknown, inactive or deleted has
// no access, and what they have ends.
func TestDirectoryGovernsPeople(t *testing.T) {
	w := newSCIMWorld(t)
	ana := w.session("ana")
	closing := api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:close"}} // for any person
	if _, err := ana.Ask(t.Context(), closing); !errors.Is(err, api.FactUnknown) {
		t.Fatalf("unknown to the directory: got %v, want %s", err, api.FactUnknown)
	}
	id := w.corp.user("ana")
	if _, _, err := ana.AskAndCollect(t.Context(), read()); !errors.Is(err, api.Denied) {
		t.Fatalf("in no group: got %v, want %s", err, api.Denied)
	}
	w.corp.group("Ops", id)
	for name, end := range map[string]struct{ method, body string }{
		"PATCH, as Entra ID": {"PATCH", `{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":[{"op":"Replace","path":"active","value":"False"}]}`},
		"PATCH, as Okta":     {"PATCH", `{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":[{"op":"replace","value":{"active":false}}]}`},
		"PUT":                {"PUT", `{"schemas":["urn:ietf:params:scim:schemas:core:2.0:User"],"userName":"ana@acme.test","externalId":"ana","active":false}`},
		"another externalId": {"PATCH", `{"schemas":["urn:ietf:params:scim:api:messages:2.0:PatchOp"],"Operations":[{"op":"replace","path":"externalId","value":"other"}]}`},
	} {
		issued, _, err := ana.AskAndCollect(t.Context(), read())
		if err != nil {
			t.Fatalf("%s: before: %v", name, err)
		}
		pending, err := ana.Ask(t.Context(), closing)
		if err != nil {
			t.Fatal(err)
		}
		w.corp.must(http.StatusOK, end.method, "/Users/"+id, end.body)
		if _, err := ana.Ask(t.Context(), closing); !hasEnded(err) {
			t.Errorf("%s: got %v, want %s or %s", name, err, api.FactEnded, api.Unauthenticated)
		}
		w.ended(issued.Lease)
		Eventually(t, "the end of the pending request", func() bool {
			return slices.ContainsFunc(w.Records(), func(r audit.Record) bool { return r.Kind == audit.RequestRevoked && r.Request.ID == pending.ID })
		})
		if status, answer := w.corp.patch("/Users/"+id, `[{"op":"replace","value":{"active":true,"externalId":"ana"}}]`); status != http.StatusOK {
			t.Fatalf("%s: activating: %d %v", name, status, answer)
		}
		Eventually(t, "access again", func() bool {
			ana = w.session("ana") // the end of a person closes their sessions
			_, _, err := ana.AskAndCollect(t.Context(), read())
			return err == nil
		})
	}
	issued, _, err := ana.AskAndCollect(t.Context(), read())
	if err != nil {
		t.Fatal(err)
	}
	w.corp.must(http.StatusNoContent, "DELETE", "/Users/"+id, "")
	if _, err := ana.Ask(t.Context(), closing); !hasEnded(err) {
		t.Errorf("deleted: got %v, want %s or %s", err, api.FactEnded, api.Unauthenticated)
	}
	w.ended(issued.Lease)
	if status, _ := w.corp.patch("/Users/"+id, `[{"op":"replace","value":{"active":true}}]`); status != http.StatusNotFound {
		t.Errorf("a late PATCH of a deleted user: got %d, want 404", status)
	}
	again := w.corp.user("ana")
	ana = w.session("ana")
	if again == id {
		t.Error("the id of a deleted user is used again")
	}
	if _, _, err := ana.AskAndCollect(t.Context(), read()); !errors.Is(err, api.Denied) {
		t.Errorf("a new user has the groups of the deleted one: got %v, want %s", err, api.Denied)
	}
}

// A directory states when a person's access ends: it ends then, and no one has to act.
func TestDirectoryStatesTheEnd(t *testing.T) {
	w := newSCIMWorld(t)
	id := w.corp.user("ana")
	w.corp.group("Ops", id)
	ana := w.session("ana")
	state := func(ends string) (int, map[string]any) {
		return w.corp.patch("/Users/"+id, fmt.Sprintf(`[{"op":"replace","path":"urn:access-broker:scim:schemas:extension:access:1.0:User:ends","value":%q}]`, ends))
	}
	if status, answer := state("next week"); status != http.StatusBadRequest {
		t.Errorf("not a time: got %d %v", status, answer)
	}
	soon := time.Now().Add(2 * time.Minute).UTC().Truncate(time.Second)
	if status, answer := state(soon.Format(time.RFC3339)); status != http.StatusOK {
		t.Fatalf("an end: got %d %v", status, answer)
	}
	if status, answer := w.corp.patch("/Users/"+id, `[{"op":"add","value":{"urn:access-broker:scim:schemas:extension:access:1.0:User":{"sponsor":"login/ben"}}}]`); status != http.StatusOK || !strings.Contains(fmt.Sprint(answer["schemas"]), "extension:access:1.0") {
		t.Fatalf("a sponsor: got %d %v", status, answer)
	}
	issued, r, err := ana.AskAndCollect(t.Context(), read())
	if err != nil {
		t.Fatal(err)
	}
	if issued.ExpiresAt.After(soon) {
		t.Errorf("the credential of %s expires at %v, want at most %v", r.ID, issued.ExpiresAt, soon)
	}
	if !slices.ContainsFunc(w.Records(), func(r audit.Record) bool {
		return r.Kind == audit.FactChanged && r.Fact.Subject == "person login/ana" && r.Fact.Until.Equal(soon) && !r.Fact.Details.IsZero()
	}) {
		t.Error("no record states the end and the sponsor")
	}
	// The end moves into the past: what is left ends now.
	if status, answer := state("2020-01-01T00:00:00Z"); status != http.StatusOK {
		t.Fatalf("an end in the past: got %d %v", status, answer)
	}
	w.ended(issued.Lease)
	if _, _, err := ana.AskAndCollect(t.Context(), read()); !hasEnded(err) {
		t.Errorf("after the end: got %v", err)
	}
}

// A person who leaves a group loses at once what policy permitted because of it, and
// keeps the rest.
func TestLeavingAGroupEndsItsLeases(t *testing.T) {
	w := newSCIMWorld(t)
	id := w.corp.user("ana")
	ben := w.corp.user("ben")
	ops := w.corp.group("Ops", id, ben)
	ana, other := w.session("ana"), w.session("ben")
	for name, leave := range map[string]func(){
		"filter": func() {
			w.corp.patch("/Groups/"+ops, fmt.Sprintf(`[{"op":"remove","path":"members[value eq \"%s\"]"}]`, id))
		},
		"value": func() {
			w.corp.patch("/Groups/"+ops, fmt.Sprintf(`[{"op":"Remove","path":"members","value":[{"value":%q}]}]`, id))
		},
		"PUT": func() {
			w.corp.must(http.StatusOK, "PUT", "/Groups/"+ops, fmt.Sprintf(`{"schemas":["urn:ietf:params:scim:schemas:core:2.0:Group"],"displayName":"Ops","members":[{"value":%q}]}`, ben))
		},
		"another name": func() { w.corp.patch("/Groups/"+ops, `[{"op":"replace","path":"displayName","value":"Ops 2"}]`) },
	} {
		issued, _, err := ana.AskAndCollect(t.Context(), read())
		if err != nil {
			t.Fatalf("%s: before: %v", name, err)
		}
		kept, _, err := other.AskAndCollect(t.Context(), read())
		if err != nil {
			t.Fatal(err)
		}
		leave()
		if _, _, err := ana.AskAndCollect(t.Context(), read()); !errors.Is(err, api.Denied) {
			t.Errorf("%s: got %v, want %s", name, err, api.Denied)
		}
		w.ended(issued.Lease)
		if l, err := other.Lease(t.Context(), kept.Lease); name != "another name" && (err != nil || l.Status != api.LeaseActive) {
			t.Errorf("%s: the lease of another member: got %+v, %v", name, l, err)
		}
		if status, answer := w.corp.patch("/Groups/"+ops, fmt.Sprintf(`[{"op":"replace","path":"displayName","value":"Ops"},{"op":"add","path":"members","value":[{"value":%q}]}]`, id)); status != http.StatusNoContent {
			t.Fatalf("%s: joining again: %d %v", name, status, answer)
		}
	}
}

// Group changes count from the next vote on. The record of the vote names the source, and
// an earlier record has the change.
func TestVotesFollowTheDirectory(t *testing.T) {
	w := newSCIMWorld(t)
	anaID, benID := w.corp.user("ana"), w.corp.user("ben")
	dba := w.corp.group("DBA")
	ana, ben := w.session("ana"), w.session("ben")
	r, err := ana.Ask(t.Context(), api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:close"}})
	if err != nil {
		t.Fatal(err)
	}
	vote := api.Vote{Decision: api.Approve, Digest: r.Digest}
	if _, err := ben.Vote(t.Context(), r.ID, vote); err == nil {
		t.Fatal("a person outside of the group votes")
	}
	// While the request waits, its requester enters the approvers' group.
	w.corp.patch("/Groups/"+dba, fmt.Sprintf(`[{"op":"add","path":"members","value":[{"value":%q}]}]`, anaID))
	if _, err := ana.Vote(t.Context(), r.ID, vote); !errors.Is(err, api.OwnRequest) {
		t.Errorf("the requester, now an approver: got %v, want %s", err, api.OwnRequest)
	}
	w.corp.patch("/Groups/"+dba, fmt.Sprintf(`[{"op":"add","path":"members","value":[{"value":%q}]}]`, benID))
	w.corp.patch("/Groups/"+dba, fmt.Sprintf(`[{"op":"remove","path":"members[value eq \"%s\"]"}]`, benID))
	if _, err := ben.Vote(t.Context(), r.ID, vote); err == nil {
		t.Error("a person who left the group votes")
	}
	w.corp.patch("/Groups/"+dba, fmt.Sprintf(`[{"op":"add","path":"members","value":[{"value":%q}]}]`, benID))
	if r, err := ben.Vote(t.Context(), r.ID, vote); err != nil || r.Status != api.StatusApproved {
		t.Fatalf("a member: got %+v, %v", r, err)
	}
	added := -1
	for i, rec := range w.Records() {
		if rec.Kind == audit.DirectoryGroup && slices.Contains(rec.Directory.Added, "login/ben") {
			added = i
		}
		if rec.Kind == audit.RequestApproved {
			if rec.Directory == nil || !slices.Equal(rec.Directory.Memberships, []string{"dba scim:corp"}) || added < 0 {
				t.Errorf("the record of the vote: got %+v after the change %d, want the membership by scim:corp", rec.Directory, added)
			}
			return
		}
	}
	t.Error("the vote has no record")
}

// The manager whom the directory names approves what policy submits to the manager.
func TestManagersOfTheDirectory(t *testing.T) {
	w := newSCIMWorld(t)
	anaID, benID, cemID := w.corp.user("ana"), w.corp.user("ben"), w.corp.user("cem")
	setManager := func(user, manager string) (int, map[string]any) {
		return w.corp.patch("/Users/"+user, fmt.Sprintf(`[{"op":"Add","path":"urn:ietf:params:scim:schemas:extension:enterprise:2.0:User:manager","value":%q}]`, manager))
	}
	if status, answer := setManager(anaID, anaID); status != http.StatusBadRequest || answer["scimType"] != "invalidValue" {
		t.Errorf("a user as their own manager: got %d %v, want 400 invalidValue", status, answer)
	}
	if status, answer := setManager(anaID, benID); status != http.StatusOK {
		t.Fatalf("setting the manager: %d %v", status, answer)
	}
	ana, ben, cem := w.session("ana"), w.session("ben"), w.session("cem")
	r, err := ana.Ask(t.Context(), api.Ask{Entitlement: "tickets-api", Scopes: []string{"tickets:comment"}})
	if err != nil {
		t.Fatal(err)
	}
	setManager(anaID, cemID) // while the request waits
	vote := api.Vote{Decision: api.Approve, Digest: r.Digest}
	if _, err := ben.Vote(t.Context(), r.ID, vote); err == nil {
		t.Error("the former manager approves")
	}
	if _, err := ana.Vote(t.Context(), r.ID, vote); !errors.Is(err, api.OwnRequest) {
		t.Errorf("the requester: got %v, want %s", err, api.OwnRequest)
	}
	if r, err := cem.Vote(t.Context(), r.ID, vote); err != nil || r.Status != api.StatusApproved {
		t.Errorf("the manager: got %+v, %v", r, err)
	}
}

// Two sources have nothing in common, also if their users have the same names.
func TestSourcesAreApart(t *testing.T) {
	w := newSCIMWorld(t)
	id, other := w.corp.user("ana"), w.partner.user("ana")
	for name, call := range map[string]func() (int, map[string]any){
		"GET": func() (int, map[string]any) { return w.partner.call("GET", "/Users/"+id, "") },
		"PATCH": func() (int, map[string]any) {
			return w.partner.patch("/Users/"+id, `[{"op":"replace","path":"active","value":false}]`)
		},
		"DELETE": func() (int, map[string]any) { return w.partner.call("DELETE", "/Users/"+id, "") },
	} {
		if status, answer := call(); status != http.StatusNotFound {
			t.Errorf("%s of another source's user: got %d %v, want 404", name, status, answer)
		}
	}
	if status, answer := w.corp.patch("/Groups/"+w.corp.group("Ops"), fmt.Sprintf(`[{"op":"add","path":"members","value":[{"value":%q}]}]`, other)); status != http.StatusBadRequest {
		t.Errorf("another source's user as a member: got %d %v, want 400", status, answer)
	}
	if got := w.partner.must(http.StatusOK, "GET", `/Users?filter=userName+eq+%22ana@acme.test%22`, ""); got["totalResults"] != 1.0 {
		t.Errorf("the same userName at two sources: got %v, want one user", got)
	}
	w.partner.must(http.StatusNoContent, "DELETE", "/Users/"+other, "")
	w.corp.must(http.StatusOK, "GET", "/Users/"+id, "")
}

func TestNamesAreUnique(t *testing.T) {
	w := newSCIMWorld(t)
	id := w.corp.user("ana")
	for name, body := range map[string]string{
		"the same userName": `{"schemas":["urn:ietf:params:scim:schemas:core:2.0:User"],"userName":"ana@acme.test","externalId":"x1"}`,
		"a case-folded one": `{"schemas":["urn:ietf:params:scim:schemas:core:2.0:User"],"userName":"ANA@Acme.test","externalId":"x2"}`,
		"the same person":   `{"schemas":["urn:ietf:params:scim:schemas:core:2.0:User"],"userName":"bo@acme.test","externalId":"ana"}`,
	} {
		if status, answer := w.corp.call("POST", "/Users", body); status != http.StatusConflict || answer["scimType"] != "uniqueness" {
			t.Errorf("%s: got %d %v, want 409 uniqueness", name, status, answer)
		}
	}
	w.corp.group("Ops")
	if status, _ := w.corp.call("POST", "/Groups", `{"schemas":["urn:ietf:params:scim:schemas:core:2.0:Group"],"displayName":"OPS"}`); status != http.StatusConflict {
		t.Errorf("a second group of the same name: got %d, want 409", status)
	}
	// A name is free again after a failed attempt, and after the user has another one.
	if status, answer := w.corp.patch("/Users/"+id, `[{"op":"replace","path":"userName","value":"ana.b@acme.test"}]`); status != http.StatusOK {
		t.Fatalf("renaming: %d %v", status, answer)
	}
	w.corp.must(http.StatusCreated, "POST", "/Users", `{"schemas":["urn:ietf:params:scim:schemas:core:2.0:User"],"userName":"ana@acme.test","externalId":"x1"}`)
}

// Only the token of a source, or the certificate of its client, provisions it.
func TestSCIMClientsAreAuthenticated(t *testing.T) {
	w := newSCIMWorld(t)
	id := w.corp.user("ana")
	session := w.session("ana")
	token, err := w.Token(Agent, "tickets:read")
	if err != nil {
		t.Fatal(err)
	}
	sessionToken, _ := session.Token(t.Context())
	for name, text := range map[string]string{
		"nothing": "", "a JWT-SVID": w.JWT(Agent), "an access token": string(token.AccessToken), "a session": sessionToken,
		"a damaged token": w.corp.token[:len(w.corp.token)-4] + "AAAA", "no token": "x", "two dots": "a.b.c",
	} {
		c := *w.corp
		c.token = text
		status, answer := c.call("GET", "/Users/"+id, "")
		if status != http.StatusUnauthorized || fmt.Sprint(answer["schemas"]) != "[urn:ietf:params:scim:api:messages:2.0:Error]" {
			t.Errorf("%s: got %d %v, want 401 in the form of SCIM", name, status, answer)
		}
	}
	// The token has no rights at other endpoints.
	if _, err := w.as(w.corp.token).WhoAmI(t.Context()); !errors.Is(err, api.Unauthenticated) {
		t.Errorf("the token at /v1: got %v, want %s", err, api.Unauthenticated)
	}
	// The certificate of the configured client is enough, others are not.
	client := *w.corp
	client.token, client.http = "", w.Client("spiffe://acme.test/provisioner").HTTP
	client.must(http.StatusOK, "GET", "/Users/"+id, "")
	client.http = w.Client(Agent).HTTP
	if status, _ := client.call("GET", "/Users/"+id, ""); status != http.StatusUnauthorized {
		t.Errorf("another workload's certificate: got %d, want 401", status)
	}
	client.token = w.corp.token
	if status, _ := client.call("GET", "/Users/"+id, ""); status != http.StatusUnauthorized {
		t.Errorf("a stolen token with another certificate: got %d, want 401", status)
	}
}

func TestEntityTags(t *testing.T) {
	w := newSCIMWorld(t)
	id := w.corp.user("ana")
	tag := func() string {
		return w.corp.must(http.StatusOK, "GET", "/Users/"+id, "")["meta"].(map[string]any)["version"].(string)
	}
	first := tag()
	if status, _ := w.corp.call("GET", "/Users/"+id, "", "If-None-Match", first); status != http.StatusNotModified {
		t.Errorf("the known version: got %d, want 304", status)
	}
	if status, _ := w.corp.patch("/Users/"+id, `[{"op":"replace","path":"title","value":"A"}]`, "If-Match", first); status != http.StatusOK {
		t.Errorf("a change of the known version: got %d, want 200", status)
	}
	if status, _ := w.corp.patch("/Users/"+id, `[{"op":"replace","path":"title","value":"B"}]`, "If-Match", first); status != http.StatusPreconditionFailed {
		t.Errorf("a change of an old version: got %d, want 412", status)
	}
	second := tag()
	w.corp.group("Ops", id)
	if third := tag(); third == second || second == first {
		t.Errorf("got the tags %s, %s, %s, want different ones", first, second, third)
	}
	if status, _ := w.corp.call("DELETE", "/Users/"+id, "", "If-Match", first); status != http.StatusPreconditionFailed {
		t.Errorf("deleting an old version: got %d, want 412", status)
	}
}
