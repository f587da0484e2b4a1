package aws

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/issuers/issuertest"
)

// A fakeIAM stores inline policies of roles, through IAM's query protocol.
type fakeIAM struct {
	t   *testing.T
	url string

	mu       sync.Mutex
	refuse   http.HandlerFunc
	policies map[string]string // by "role/name"
	puts     int
}

func newFakeIAM(t *testing.T) *fakeIAM {
	f := &fakeIAM{t: t, policies: map[string]string{}}
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	f.url = s.URL
	return f
}

func (f *fakeIAM) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil || !strings.Contains(r.Header.Get("Authorization"), "/iam/aws4_request") {
		f.t.Errorf("the request is not signed for IAM, or %v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.refuse != nil {
		f.refuse(w, r)
		return
	}
	key, action := r.PostForm.Get("RoleName")+"/"+r.PostForm.Get("PolicyName"), r.PostForm.Get("Action")
	document, there := f.policies[key]
	result := ""
	switch {
	case action == "PutRolePolicy":
		f.policies[key] = r.PostForm.Get("PolicyDocument")
		f.puts++
	case !there:
		stsError(404, "NoSuchEntity", "no")(w, r)
		return
	case action == "DeleteRolePolicy":
		delete(f.policies, key)
	case action == "GetRolePolicy":
		result = fmt.Sprintf("<GetRolePolicyResult><RoleName>r</RoleName><PolicyName>n</PolicyName><PolicyDocument>%s</PolicyDocument></GetRolePolicyResult>", url.QueryEscape(document))
	default:
		f.t.Errorf("unexpected action %s", action)
	}
	fmt.Fprintf(w, `<%[1]sResponse xmlns="https://iam.amazonaws.com/doc/2010-05-08/">%[2]s<ResponseMetadata><RequestId>r</RequestId></ResponseMetadata></%[1]sResponse>`, action, result)
}

// revocable returns an issuer whose sessions can be denied, and one of its leases
// that is being revoked.
func revocable(t *testing.T, deny Deny) (*Issuer, *fakeIAM, *fakeSTS, broker.Lease) {
	t.Helper()
	f, iam := newFakeSTS(t), newFakeIAM(t)
	cfg := f.byAssertion(t).cfg
	cfg.Revoker, cfg.IAMEndpoint = "arn:aws:iam::123456789012:role/revoker", iam.url
	now := issuertest.Noon
	cfg.Now = func() time.Time { return now }
	a := newIssuer(t, cfg)
	o := newOrder(t, a)
	role, e := reportsRole()
	role.Revoke = deny
	e.Spec = compile(t, a.cfg, role, e)
	o.Entitlement = e
	prepared, err := a.Prepare(t.Context(), o)
	if err != nil || len(prepared.Handle) == 0 {
		t.Fatalf("prepared: %q, %v", prepared.Handle, err)
	}
	l := o.Lease
	l.Handle, l.EndHow, l.Opened = prepared.Handle, broker.EndRevoked, issuertest.Noon
	a.cfg.Now = func() time.Time { return now }
	return a, iam, f, l
}

func TestRevokeDeniesSession(t *testing.T) {
	a, iam, f, l := revocable(t, DenySession)
	returned := l
	returned.EndHow = broker.EndReturned
	if err := a.Revoke(t.Context(), returned); !errors.Is(err, broker.ErrNotRevocable) || iam.puts != 0 {
		t.Errorf("returned lease: got %v, want %v; %d policies", err, broker.ErrNotRevocable, iam.puts)
	}
	for range 2 { // the first answer may have been lost
		if err := a.Revoke(t.Context(), l); !errors.Is(err, broker.ErrQueued) {
			t.Fatalf("revoked: %v", err)
		}
	}
	want := `{"Statement":[{"Action":"*","Condition":{"StringLike":{"aws:userid":"*:` + l.ID.String() + `"}},"Effect":"Deny","Resource":"*"}],"Version":"2012-10-17"}`
	name := "reports/" + denySessionPrefix + l.ID.String()
	if len(iam.policies) != 1 || iam.policies[name] != want {
		t.Errorf("IAM has %v", iam.policies)
	}
	// The broker assumes the revoker's role as itself, not for an entitlement.
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(f.calls[0].form.Get("WebIdentityToken"), ".")[1])
	var claims struct {
		Sub string `json:"sub"`
	}
	if err != nil || json.Unmarshal(payload, &claims) != nil || claims.Sub != "revoker" {
		t.Errorf("the assertion's sub is %q", claims.Sub)
	}
	// The policy is removed when the session has expired.
	a.cfg.Now = func() time.Time { return l.Expires }
	f.clock = a.cfg.Now
	l.EndAsked = issuertest.Noon
	if err := a.Revoke(t.Context(), l); !errors.Is(err, broker.ErrNotRevocable) || len(iam.policies) != 0 {
		t.Errorf("expired: %v, IAM has %v", err, iam.policies)
	}
}

// A policy that outlives its session takes up space. The broker tries to remove it
// until it succeeds.
func TestRevokeRemovesDenial(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		want   error
	}{
		{400, "Throttling", broker.ErrIssuerUnavailable},
		{503, "ServiceUnavailable", broker.ErrIssuerUnavailable},
		{403, "AccessDenied", broker.ErrIssuerRefused}, // the operator can fix that
		{404, "NoSuchEntity", broker.ErrNotRevocable},  // the role may be gone, too
	} {
		a, iam, f, l := revocable(t, DenySession)
		if err := a.Revoke(t.Context(), l); !errors.Is(err, broker.ErrQueued) || len(iam.policies) != 1 {
			t.Fatalf("revoked: %v, IAM has %v", err, iam.policies)
		}
		a.cfg.Now = func() time.Time { return l.Expires }
		f.clock = a.cfg.Now
		l.EndAsked = issuertest.Noon
		iam.refuse = stsError(c.status, c.code, "no")
		if err := a.Revoke(t.Context(), l); !errors.Is(err, c.want) || c.want != broker.ErrNotRevocable && errors.Is(err, broker.ErrNotRevocable) {
			t.Errorf("%s: %v", c.code, err)
		}
		iam.refuse = nil
		for range 2 { // the first answer may have been lost
			if err := a.Revoke(t.Context(), l); !errors.Is(err, broker.ErrNotRevocable) || len(iam.policies) != 0 {
				t.Errorf("after %s: %v, IAM has %v", c.code, err, iam.policies)
			}
		}
	}
}

// One policy denies all earlier sessions of the role; revoking them needs no other.
func TestRevokeDeniesRole(t *testing.T) {
	a, iam, f, l := revocable(t, DenyRole)
	at := issuertest.Noon.Add(10 * time.Minute)
	a.cfg.Now = func() time.Time { return at }
	f.clock = a.cfg.Now
	for range 3 {
		if err := a.Revoke(t.Context(), l); !errors.Is(err, broker.ErrQueued) {
			t.Fatalf("revoked: %v", err)
		}
	}
	want := `{"Statement":[{"Action":"*","Condition":{"DateLessThan":{"aws:TokenIssueTime":"` + at.Format(time.RFC3339) + `"}},"Effect":"Deny","Resource":"*"}],"Version":"2012-10-17"}`
	if iam.puts != 1 || iam.policies["reports/"+denyBeforePolicy] != want {
		t.Errorf("%d writes, want 1; IAM has %v", iam.puts, iam.policies)
	}
	later := l
	later.Opened, at = at, at.Add(time.Hour/2)
	if err := a.Revoke(t.Context(), later); !errors.Is(err, broker.ErrQueued) || iam.puts != 2 {
		t.Errorf("later session: %v, %d writes, want 2", err, iam.puts)
	}
	spec := Spec{role: Role{RoleARN: "arn:aws:iam::1:role/x", Revoke: DenyRole}}
	if spec.Shares() != "arn:aws:iam::1:role/x" {
		t.Errorf("Shares() = %q", spec.Shares())
	}
}

func TestRevokeReportsIAMErrors(t *testing.T) {
	for _, c := range []struct {
		status int
		code   string
		want   error
	}{
		{409, "LimitExceeded", broker.ErrIssuerRefused},
		{403, "AccessDenied", broker.ErrIssuerRefused},
		{404, "NoSuchEntity", broker.ErrIssuerRefused},
		{400, "Throttling", broker.ErrIssuerUnavailable},
		{500, "ServiceFailure", broker.ErrIssuerUnavailable},
	} {
		a, iam, _, l := revocable(t, DenySession)
		iam.refuse = stsError(c.status, c.code, "no")
		if err := a.Revoke(t.Context(), l); !errors.Is(err, c.want) {
			t.Errorf("%s: got %v, want %v", c.code, err, c.want)
		}
	}
	a, _, _, l := revocable(t, DenySession)
	for _, handle := range []string{"{}", `{"role":"../x","deny":"session"}`, `{"role":"x","deny":"all"}`, "x", `{"role":"x","account":"210987654321","deny":"role"}`} {
		l.Handle = []byte(handle)
		if err := a.Revoke(t.Context(), l); err == nil || errors.Is(err, broker.ErrQueued) {
			t.Errorf("handle %s: got %v, want a refusal", handle, err)
		}
	}
}

// vaultHandle is a handle as issuers of package vault store it.
const vaultHandle = `{"accessor":"a","made":"token","at":"0123456789abcdef"}`

func TestOwns(t *testing.T) {
	a, _, _, l := revocable(t, DenyRole)
	for handle, want := range map[string]bool{
		"":                              true,
		vaultHandle:                     false,
		string(l.Handle):                true,
		nothingIssued:                   true,
		`{"role":"x","deny":"session"}`: true, // stored before handles named the account
		`{"role":"x","account":"210987654321","deny":"session"}`: false,
	} {
		if got := a.Owns(broker.Lease{Handle: []byte(handle)}); got != want {
			t.Errorf("Owns(%q) = %v, want %v", handle, got, want)
		}
	}
}

func TestRevokeRejectsForeignLease(t *testing.T) {
	l := broker.Lease{Handle: []byte(vaultHandle), Expires: time.Now().Add(time.Minute)}
	if err := (&Issuer{}).Revoke(t.Context(), l); !errors.Is(err, broker.ErrIssuerUnavailable) {
		t.Errorf("got %v, want %v", err, broker.ErrIssuerUnavailable)
	}
}
