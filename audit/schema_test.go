package audit

import (
	"bytes"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestKindsListsEveryDeclaredKindOnce(t *testing.T) {
	source, err := os.ReadFile("record.go")
	if err != nil {
		t.Fatal(err)
	}
	var declared []Kind
	for _, found := range regexp.MustCompile(`Kind = "([^"]+)"`).FindAllSubmatch(source, -1) {
		declared = append(declared, Kind(found[1]))
	}
	slices.Sort(declared)
	if got := slices.Sorted(slices.Values(Kinds())); len(declared) < 27 || !slices.Equal(got, declared) {
		t.Errorf("got kinds %q, declared %q", got, declared)
	}
}

// It measures the schema itself, with every field of a record at its bound.
func TestBoundsFitIntoALeaf(t *testing.T) {
	measure := func(fields func(*codec)) int {
		c := codec{mode: measuring}
		fields(&c)
		return c.most
	}
	most := len("{}") + measure(new(Record).fields)
	// At most one of these is in a record.
	var r Record
	alternatives := []func(*codec){
		func(c *codec) { sub(c, "rules", &r.Rules, (*RulesFacts).fields) },
		func(c *codec) { sub(c, "log", &r.Log, (*LogFacts).fields) },
		func(c *codec) { sub(c, "key", &r.Key, (*KeyFacts).fields) },
		func(c *codec) { sub(c, "block", &r.Block, (*BlockFacts).fields) },
		func(c *codec) { sub(c, "fact", &r.Fact, (*FactFacts).fields) },
		func(c *codec) { sub(c, "signal", &r.Signal, (*SignalFacts).fields) },
		func(c *codec) { sub(c, "directory", &r.Directory, (*DirectoryFacts).fields) },
		func(c *codec) { sub(c, "supplier", &r.Supplier, (*SupplierFacts).fields) },
		func(c *codec) { sub(c, "membership", &r.Membership, (*MembershipFacts).fields) },
		func(c *codec) { sub(c, "campaign", &r.Campaign, (*CampaignFacts).fields) },
		func(c *codec) { sub(c, "call", &r.Call, (*CallFacts).fields) },
		func(c *codec) { sub(c, "pruned", &r.Pruned, (*PrunedFacts).fields) },
		func(c *codec) { sub(c, "recovery", &r.Recovery, (*RecoveryFacts).fields) },
	}
	largest := 0
	for _, fields := range alternatives {
		size := measure(fields)
		largest, most = max(largest, size), most-size
	}
	most += largest
	t.Logf("a record takes at most %d bytes", most)
	if most < MaxLeaf/2 || most > MaxLeaf {
		t.Errorf("got a maximum of %d bytes, want at most %d, and at least half of that", most, MaxLeaf)
	}
}

// The size of a real record confirms the measurement of TestBoundsFitIntoALeaf.
func TestLargestRecordFitsIntoALeaf(t *testing.T) {
	r := fullRecord()
	long := func(most int) []string { return []string{strings.Repeat("x", most-len(`[""]`))} }
	for _, p := range []*Party{r.Caller, r.Subject} {
		*p = Party{ID: strings.Repeat("x", maxID), Kind: strings.Repeat("x", maxWord), Method: strings.Repeat("x", maxWord), Attested: strings.Repeat("x", maxAttested), Proof: digest(1), Expires: someTime, Actors: long(maxActors), Accounts: long(maxAccounts), Also: long(maxAlso)}
	}
	r.Request.Accountable = long(maxAccountable)
	r.Request.Scopes, r.Approval.Scopes, r.Lease.Scopes = long(maxScopes), long(maxScopes), long(maxScopes)
	r.Decision.Policies, r.Decision.Approvals, r.Approval.Groups = long(maxPolicies), long(maxGroups), long(maxGroups)
	r.Fact, r.Directory, r.Rules, r.Campaign, r.Call, r.Pruned, r.Recovery = nil, nil, nil, nil, nil, nil, nil
	r.Log.Previous, r.Block.Selector = strings.Repeat("x", maxNote), strings.Repeat("x", maxSelector)
	if n := len(mustEntry(t, r).Leaf()); n < MaxLeaf/2 || n > MaxLeaf {
		t.Errorf("got %d bytes, want between %d and %d", n, MaxLeaf/2, MaxLeaf)
	}
	r.Caller.ID += "x"
	if _, err := r.Entry(); err == nil || !strings.Contains(err.Error(), "id: 2049 bytes exceed the limit of 2048") {
		t.Errorf("one byte over the bound: %v", err)
	}
}

func TestSetAccountableDropsPeopleThatDoNotFit(t *testing.T) {
	var people []string
	for n := range 500 {
		people = append(people, fmt.Sprint("login/person-", n))
	}
	r := fullRecord()
	r.Request.SetAccountable(people)
	if n := len(r.Request.Accountable); n < 80 || n > 120 {
		t.Errorf("got %d people, want about 100", n)
	}
	mustEntry(t, r)
	if r.Request.SetAccountable(people[:3]); len(r.Request.Accountable) != 3 {
		t.Errorf("got %q, want 3 people", r.Request.Accountable)
	}
}

func TestRecordsRoundTrip(t *testing.T) {
	r := fullRecord()
	setAll := reflect.ValueOf(r)
	for i := range setAll.NumField() {
		if setAll.Field(i).IsZero() {
			t.Fatalf("fullRecord does not set %s", setAll.Type().Field(i).Name)
		}
		facts := setAll.Field(i)
		if facts.Kind() != reflect.Pointer {
			continue
		}
		for j := range facts.Elem().NumField() {
			if facts.Elem().Field(j).IsZero() {
				t.Errorf("fullRecord does not set %s.%s", setAll.Type().Field(i).Name, facts.Elem().Type().Field(j).Name)
			}
		}
	}
	e := mustEntry(t, r)
	got, err := Decode(e.Leaf())
	if err != nil {
		t.Fatal(err)
	}
	if got.From.IsValid() || bytes.Contains(e.Leaf(), []byte(r.From.String())) {
		t.Errorf("the leaf has the address: %s", e.Leaf())
	}
	got.From = r.From
	got.Openings, err = DecodeOpenings(e.Openings())
	if err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("got\n%+v (%v), want\n%+v", got, err, r)
	}
}

func TestEntryRejectsInvalidRecords(t *testing.T) {
	_, opening := Commit("other")
	for _, test := range []struct {
		want   string
		change func(*Record)
	}{
		{"kind: missing", func(r *Record) { r.Kind = "" }},
		{"not valid UTF-8", func(r *Record) { r.Request.Entitlement = "\xff" }},
		{"not valid UTF-8", func(r *Record) { r.Request.Scopes = []string{"a", "\xc3"} }},
		{"not a whole number of seconds", func(r *Record) { r.Request.TTL = time.Millisecond }},
		{"not between 0 and 2^53", func(r *Record) { r.Request.TTL = -time.Second }},
		{"not between 0 and 2^53", func(r *Record) { r.Count = 1 << 53 }},
		{"does not have four digits", func(r *Record) { r.Lease.Expires = someTime.AddDate(9000, 0, 0) }},
		{"name: 2049 bytes exceed the limit of 2048", func(r *Record) { r.Rules.Files = map[string]Digest{strings.Repeat("x", 2049): digest(1)} }},
		{"policies: 5121 bytes exceed the limit of 5120", func(r *Record) { r.Decision.Policies = []string{strings.Repeat("x", 5117)} }},
		{"credential: 401 bytes exceed the limit of 400", func(r *Record) { r.Passkey.Credential = make([]byte, MaxCredential+1) }},
		{`the opening "ticket" does not match`, func(r *Record) { r.Openings = map[string]Opening{"ticket": opening} }},
		{`the opening "colour" has no commitment`, func(r *Record) { r.Openings = map[string]Opening{"colour": opening} }},
		{"bytes of its texts exceed the limit of 262144", func(r *Record) { r.Openings = map[string]Opening{"ticket": {Text: strings.Repeat("x", MaxOpenings)}} }},
	} {
		r := fullRecord()
		test.change(&r)
		if _, err := r.Entry(); err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("want %q, got %v", test.want, err)
		}
	}
}

func TestDecodeRejectsOtherEncodings(t *testing.T) {
	good := string(mustEntry(t, Record{Time: someTime, Kind: LeaseIssued, Count: 2, Caller: &Party{ID: "a\"b", Proof: digest(0xab)},
		Request: &RequestFacts{TTL: time.Minute, Scopes: []string{"s"}}, Decision: &DecisionFacts{Permit: true},
		Rules: &RulesFacts{Files: map[string]Digest{"a": digest(1), "b": digest(2)}}}).Leaf())
	if _, err := Decode([]byte(good)); err != nil {
		t.Fatalf("%s: %v", good, err)
	}
	for _, change := range [][2]string{
		{`{"caller"`, ` {"caller"`}, {`"v":1}`, `"v":1}` + "\n"}, {`"v":1}`, `"v":1,"w":2}`}, {`"v":1}`, `"v":2}`}, {`"v":1}`, `"v":01}`},
		{`"count":2,`, `"count":2,"count":2,`}, {`"count":2,`, `"count":1,`}, {`"count":2,`, `"count":0,`}, {`"count":2,`, `"count":-2,`},
		{`"count":2,`, `"count":2.0,`}, {`"count":2,`, `"count":2e0,`}, {`"count":2,`, `"count":9007199254740992,`}, {`"count":2,`, `"count": 2,`},
		{`"count":2,`, `"Count":2,`}, {`"count":2,`, `"counts":2,`}, {`"count":2,`, `"count":"2",`}, {`"count":2,`, `"block":null,"count":2,`},
		{`"count":2,`, `"block":{},"count":2,`}, {`"count":2,`, `"aaa":2,"count":2,`},
		{`a\"b`, `a\u0022b`}, {`a\"b`, `a/b\/`}, {`a\"b`, `a\u0041`}, {`a\"b`, "a\x01"}, {`a\"b`, "a\xff"}, {`a\"b`, `a\ud800`}, {`a\"b`, ``},
		{`abab`, `ABab`}, {`"ab`, `"`}, {`"` + strings.Repeat("ab", 32) + `"`, `"` + strings.Repeat("00", 32) + `"`},
		{`"permit":true`, `"permit":false`}, {`"permit":true`, `"permit":1`}, {`["s"]`, `[]`}, {`["s"]`, `["s",]`}, {`["s"]`, `["s"`},
		{`"ttl":60`, `"ttl":60000000000000`},
		{`2026-11-03T12:00:00.123Z`, `2026-11-03T12:00:00.1234Z`}, {`2026-11-03T12:00:00.123Z`, `2026-11-03T12:00:00,123Z`},
		{`2026-11-03T12:00:00.123Z`, `2026-11-03T12:00:00.123+00:00`}, {`2026-11-03T12:00:00.123Z`, `2026-02-30T12:00:00.123Z`},
		{`"time":"2026-11-03T12:00:00.123Z",`, ``}, {`"kind":"lease.issued",`, ``},
		{`{"name":"a"`, `{"name":"c"`}, {`"name":"b"`, `"name":"a"`},
		{`{"caller"`, `{"block":{},"caller"`}, {`{"caller"`, `{"block":null,"caller"`}, {`,"count":2,`, `,"count":9999999999999999999,`},
		{good, good[:len(`{"caller":{"id":"a`)]}, {good, good[:len(good)-1]},
		{good, ``}, {good, `{}`}, {good, `"v":1}`}, {good, `{"v":1}`}, {good, `[{"v":1}`}, {good, good + good},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good {
			t.Fatalf("%q does not occur in %s", change[0], good)
		}
		if r, err := Decode([]byte(bad)); err == nil {
			t.Errorf("%s decoded to %+v", bad, r)
		}
	}
}

// The bytes of a signature have one encoding: base64url without padding and without
// stray bits.
func TestDecodeRejectsOtherEncodingsOfBytes(t *testing.T) {
	good := string(mustEntry(t, Record{Time: someTime, Kind: PasskeyEnrolled, Passkey: &PasskeyFacts{Credential: []byte{4}}}).Leaf())
	if _, err := Decode([]byte(good)); err != nil || !strings.Contains(good, `"credential":"BA"`) {
		t.Fatalf("%s: %v", good, err)
	}
	for _, text := range []string{"BB", "BA==", "B", "+A", ""} {
		bad := strings.Replace(good, `"BA"`, `"`+text+`"`, 1)
		if r, err := Decode([]byte(bad)); err == nil {
			t.Errorf("%s decoded to %+v", bad, r)
		}
	}
}

func TestDecodeOpenings(t *testing.T) {
	_, one := Commit("one")
	_, two := Commit("two \"quoted\"")
	openings := map[string]Opening{"justification": one, "ticket": two}
	stored := appendOpenings(nil, openings)
	if got, err := DecodeOpenings(stored); err != nil || !reflect.DeepEqual(got, openings) {
		t.Errorf("got %v, %v, want %v", got, err, openings)
	}
	for _, bad := range []string{`{"x":{"salt":"` + strings.Repeat("00", 16) + `","text":"","more":1}}`, `{"x":{"salt":"00","text":""}}`, `{"x":{"salt":"` + strings.Repeat("zz", 16) + `"}}`, `[]`} {
		if got, err := DecodeOpenings([]byte(bad)); err == nil {
			t.Errorf("%s decoded to %v", bad, got)
		}
	}
}

// A record without a request, vote, end or block commits to nothing.
func TestOpeningsWithoutFacts(t *testing.T) {
	for _, field := range []string{"justification", "ticket", "parameters", "source", "comment", "reason"} {
		_, opening := Commit("text")
		r := Record{Kind: PolicyLoaded}
		if err := r.CheckOpenings(map[string]Opening{field: opening}); err == nil || !strings.Contains(err.Error(), "has no commitment") {
			t.Errorf("%s: got %v", field, err)
		}
	}
}

func TestDecodeNamesAnotherVersion(t *testing.T) {
	if _, err := Decode([]byte(`{"kind":"x","time":"2026-11-03T12:00:00.123Z","v":2}`)); err == nil || !strings.Contains(err.Error(), "a newer version") {
		t.Error(err)
	}
}

// FuzzDecode checks that every leaf that Decode accepts is encoded to the same
// bytes.
func FuzzDecode(f *testing.F) {
	f.Add(mustEntry(f, fullRecord()).Leaf())
	f.Add(mustEntry(f, Record{Kind: PolicyLoaded}).Leaf())
	f.Add([]byte(`{"kind":"a\u0000\\","time":"0000-01-01T00:00:00.000Z","v":1}`))
	f.Fuzz(func(t *testing.T, leaf []byte) {
		r, err := Decode(leaf)
		if err != nil {
			return
		}
		checkOutline(t, leaf, &r)
		e, err := r.Entry()
		if err != nil {
			if !strings.Contains(err.Error(), "exceed the limit") { // Decode does not check the bounds of single values
				t.Errorf("decoded, but not encoded: %v", err)
			}
			return
		}
		if !bytes.Equal(e.Leaf(), leaf) {
			t.Errorf("decoded\n%s\nencoded as\n%s", leaf, e.Leaf())
		}
	})
}

func BenchmarkEntry(b *testing.B) {
	r := fullRecord()
	r.Approval, r.Rules, r.Key, r.Log, r.Block, r.Delegated, r.Subject, r.Openings = nil, nil, nil, nil, nil, nil, nil, nil
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Entry(); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecode(b *testing.B) {
	leaf := mustEntry(b, fullRecord()).Leaf()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Decode(leaf); err != nil {
			b.Fatal(err)
		}
	}
}
