package store

import (
	"bytes"
	"encoding/json"
	"errors"

	"net/netip"
	"os"
	"reflect"
	"slices"
	"testing"
	"time"

	"accessbroker.internal/broker"
	"accessbroker.internal/internal/storetest"
)

// allRows returns an empty row of every type.
func allRows() []broker.Row {
	return []broker.Row{
		&broker.Request{}, &broker.Lease{}, &broker.Counter{}, &broker.Block{}, &broker.Idempotency{}, &broker.OpenAsk{}, &broker.SigningKey{},
		&broker.Notice{}, &broker.Reviews{}, &broker.Session{}, &broker.Logout{}, &broker.Login{}, &broker.Account{},
		&broker.Delivery{}, &broker.Revision{}, &broker.Collected{}, &broker.Spent{}, &broker.Membership{}, &broker.Assessment{}, &broker.Extension{}, &broker.SponsorNotices{},
	}
}

// TestRowsKeepEveryField fills every field, so that it fails if a field is added
// to a row and not to its body.
func TestRowsKeepEveryField(t *testing.T) {
	for _, r := range allRows() {
		for _, full := range []bool{true, false} {
			if full {
				fillValue(t, reflect.ValueOf(r).Elem(), 1)
			}
			if r, ok := r.(*broker.Request); ok {
				r.Reused, r.Decision.Lasting, r.Decision.Above, r.Void = false, false, "", nil // these are of one answer, and not stored
				r.Requester.Ceiling, r.Requester.Once = nil, nil                               // follow from the rules and the call
				r.Records = nil                                                                // kept by the store: see TestRowsListTheirRecords
				if d := r.Delegation; d != nil {                                               // the bounds of its proof were checked, and are not stored
					d.Scopes, d.Resource, d.ID, d.IDUntil, d.MayAct, d.Decision.Lasting = nil, "", "", time.Time{}, nil, false
					d.Details, d.Subject.Ceiling, d.Subject.Once, d.Decision.Above = nil, nil, nil, ""
				}
			}
			if s, ok := r.(*broker.Session); ok {
				s.Who.Ceiling, s.Who.Once = nil, nil // follow from the rules and the call
			}
			if l, ok := r.(*broker.Lease); ok {
				l.Records = nil
			}
			stored, err := encodeRow(r)
			if err != nil {
				t.Fatal(err)
			}
			key, err := stored.table.key(stored.id)
			if err != nil || key != r.Key() {
				t.Errorf("%T: the id has the key %v (%v), want %v", r, key, err, r.Key())
			}
			got, err := decodeRow(key, stored.body)
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, r) {
				t.Errorf("%T is read as\n%+v, want\n%+v", r, got, r)
			}
			r = reflect.New(reflect.TypeOf(r).Elem()).Interface().(broker.Row)
		}
	}
}

// What follows from the ID of a workload is not stored, and everything else is.
func TestRowsDeriveDomainAndPaths(t *testing.T) {
	const id = "spiffe://acme.test/agent/triage/7"
	derived := broker.Identity{ID: id, TrustDomain: "acme.test", Paths: broker.SPIFFEPaths(id), Kind: broker.KindAgent, Attested: broker.AttestedSPIFFE}
	change := func(f func(*broker.Identity)) broker.Identity {
		who := derived
		f(&who)
		return who
	}
	sizes := map[string]int{}
	for name, who := range map[string]broker.Identity{
		"derived":        derived,
		"another domain": change(func(i *broker.Identity) { i.TrustDomain = "other.test" }),
		"no domain":      change(func(i *broker.Identity) { i.TrustDomain = "" }),
		"fewer paths":    change(func(i *broker.Identity) { i.Paths = i.Paths[1:] }),
		"no paths":       change(func(i *broker.Identity) { i.Paths = nil }),
		"another id":     change(func(i *broker.Identity) { i.ID = "spiffe://acme.test/agent/other" }),
		"no SVID":        change(func(i *broker.Identity) { i.Attested = broker.AttestedOIDC }),
		"not attested":   change(func(i *broker.Identity) { i.Attested = "" }),
		"a person":       {ID: "login/ana", Kind: broker.KindPerson},
		"nobody":         {},
	} {
		stored, err := encodeRow(&broker.Request{ID: broker.NewRequestID(testNow), Requester: who})
		if err != nil {
			t.Fatal(err)
		}
		sizes[name] = len(stored.body)
		got, err := decodeRow(stored.key, stored.body)
		if err != nil || !reflect.DeepEqual(got.(*broker.Request).Requester, who) {
			t.Errorf("%s: got %+v, %v, want %+v", name, got, err, who)
		}
	}
	if got, most := sizes["derived"], sizes["no paths"]-len("acme.test"); got > most {
		t.Errorf("got %d bytes for an identity with derived paths, want at most %d", got, most)
	}
}

// fillValue sets everything in v to values that are not zero.
func fillValue(t *testing.T, v reflect.Value, n int) {
	switch x := v.Addr().Interface().(type) {
	case *time.Time:
		*x = testNow.Add(time.Duration(n) * 123456789)
		return
	case *netip.Addr:
		*x = netip.MustParseAddr("2001:db8::1")
		return
	}
	switch v.Kind() {
	case reflect.String:
		zero := "\x00"
		if storetest.Postgres() {
			zero = "\uFFFD" // what a column has in its place
		}
		v.SetString("text ä" + zero + string(rune('a'+n)))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.Int, reflect.Int64:
		v.SetInt(int64(-n * 1000))
	case reflect.Pointer:
		v.Set(reflect.New(v.Type().Elem()))
		fillValue(t, v.Elem(), n)
	case reflect.Uint8, reflect.Uint32:
		v.SetUint(uint64(n))
	case reflect.Array:
		for i := range v.Len() {
			fillValue(t, v.Index(i), n+i)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 2, 2))
		for i := range v.Len() {
			fillValue(t, v.Index(i), n+i)
		}
	case reflect.Map:
		v.Set(reflect.MakeMap(v.Type()))
		for i := range 2 {
			key, value := reflect.New(v.Type().Key()).Elem(), reflect.New(v.Type().Elem()).Elem()
			fillValue(t, key, n+i)
			fillValue(t, value, n+i+1)
			v.SetMapIndex(key, value)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			fillValue(t, v.Field(i), n+i)
		}
	default:
		t.Fatalf("a field of kind %s: the coder and this test have to learn it", v.Kind())
	}
}

// Every type of row can be stored and read back.
func TestEveryRowIsStored(t *testing.T) {
	s := newStore(t)
	for _, r := range allRows() {
		fillValue(t, reflect.ValueOf(r).Elem(), 1)
		put(t, s, r)
		if _, ok := r.(*broker.Spent); ok {
			continue // spent_test.go
		}
		if got, err := get(t, s, r.Key()); err != nil || got.Key() != r.Key() {
			t.Errorf("%T is read as %+v, %v", r, got, err)
		}
	}
}

// An id that is damaged is an error, and no panic.
func TestDamagedIDsAreErrors(t *testing.T) {
	for _, r := range allRows() {
		stored, err := encodeRow(r)
		if err != nil {
			t.Fatal(err)
		}
		for name, id := range map[string][]byte{"cut": stored.id[:len(stored.id)-1], "longer": slices.Concat(stored.id, []byte{5, 'x'}), "one part too many": slices.Concat(stored.id, []byte{0}), "no varint": {0xff}} {
			if key, err := stored.table.key(id); err == nil {
				t.Errorf("%T: an id that is damaged (%s) has the key %v", r, name, key)
			}
		}
	}
}

func TestZeroFieldsAreLeftOut(t *testing.T) {
	for _, r := range allRows() {
		stored, err := encodeRow(r)
		if err != nil {
			t.Fatal(err)
		}
		if len(stored.body) != 1 {
			t.Errorf("the body of an empty %T has %d bytes, want the version alone", r, len(stored.body))
		}
	}
}

// Lists report damaged rows. A row is damaged in its id or in its body.
func TestDamagedRowsAreErrors(t *testing.T) {
	for name, insert := range map[string]string{
		"id":   "INSERT INTO leases (id, body) VALUES (x'0102', x'01')",
		"body": "INSERT INTO leases (id, body) VALUES (x'00000000000000000000000000000000', x'0105')",
	} {
		s := newStore(t)
		if _, err := s.w.conn.ExecContext(t.Context(), insert); err != nil {
			t.Fatal(err)
		}
		err := s.View(t.Context(), func(tx broker.Tx) error {
			_, _, err := tx.Leases(broker.LeaseQuery{Now: testNow})
			return err
		})
		if !errors.Is(err, broker.ErrUnavailable) {
			t.Errorf("damaged %s: got %v", name, err)
		}
	}
}

// storedRow is a body as a version of the broker stored it, and the row's fields.
type storedRow struct {
	Table string
	Body  []byte
	Row   json.RawMessage
}

// Rows that earlier versions stored keep their meaning. The file has one line per
// table. Bodies in it never change; rename a field in it with the Go field.
func TestStoredRowsKeepTheirMeaning(t *testing.T) {
	storetest.OnlySQLite(t, "it uses no database, so once is enough")
	file, err := os.ReadFile("testdata/rows.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	stored := map[string]storedRow{}
	for line := range bytes.Lines(file) {
		var r storedRow
		if err := json.Unmarshal(line, &r); err != nil {
			t.Fatal(err)
		}
		stored[r.Table] = r
	}
	for _, r := range allRows() {
		table, _, err := locate(r.Key())
		if err != nil {
			t.Fatal(err)
		}
		name := tables[table].name
		was, ok := stored[name]
		if !ok {
			t.Errorf("there is no stored row of %T; add this line to the file:\n%s", r, storedLine(t, r))
			continue
		}
		fillValue(t, reflect.ValueOf(r).Elem(), 1)
		got, err := decodeRow(r.Key(), was.Body)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for field, want := range fieldsOf(t, was.Row) {
			if now := fieldsOf(t, marshal(t, got))[field]; !hasFieldsOf(t, now, want) {
				t.Errorf("%s: the field %s is read as %s, want %s", name, field, now, want)
			}
		}
	}
}

func storedLine(t *testing.T, r broker.Row) []byte {
	t.Helper()
	fillValue(t, reflect.ValueOf(r).Elem(), 1)
	encoded, err := encodeRow(r)
	if err != nil {
		t.Fatal(err)
	}
	decoded, err := decodeRow(r.Key(), encoded.body)
	if err != nil {
		t.Fatal(err)
	}
	return marshal(t, storedRow{tables[encoded.table].name, encoded.body, marshal(t, decoded)})
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// hasFieldsOf reports whether every field of a stored value is read as it was. Fields that
// were added since are zero.
func hasFieldsOf(t *testing.T, now, was []byte) bool {
	t.Helper()
	var a, b any
	if err := errors.Join(json.Unmarshal(now, &a), json.Unmarshal(was, &b)); err != nil {
		t.Fatal(err)
	}
	return includes(a, b)
}

func includes(now, was any) bool {
	switch was := was.(type) {
	case map[string]any:
		now, ok := now.(map[string]any)
		for name, value := range was {
			if !ok || !includes(now[name], value) {
				return false
			}
		}
		return ok
	case []any:
		now, ok := now.([]any)
		if !ok || len(now) != len(was) {
			return false
		}
		for i := range was {
			if !includes(now[i], was[i]) {
				return false
			}
		}
		return true
	}
	return reflect.DeepEqual(now, was)
}

func fieldsOf(t *testing.T, row []byte) (fields map[string]json.RawMessage) {
	t.Helper()
	if err := json.Unmarshal(row, &fields); err != nil {
		t.Fatal(err)
	}
	return fields
}

// Fields can be added to a row only because older programs skip them.
func TestUnknownFieldsAreSkipped(t *testing.T) {
	type future struct {
		Block broker.Block
		New   string
		N     int64
	}
	was := future{broker.Block{Reason: "r", By: "b", Since: testNow}, "new", 7}
	c := newCoder()
	if err := rowFields(&was.Block, c); err != nil {
		t.Fatal(err)
	}
	c.text(40, &was.New)
	c.int64(41, &was.N)
	var got broker.Block
	if err := decodeBody(c.buf, &got); err != nil || got != was.Block {
		t.Errorf("read %+v, %v", got, err)
	}
}

// FuzzBody checks that no bytes make a decoder panic, and that a row that can be
// read can be written and read again.
func FuzzBody(f *testing.F) {
	for i, r := range allRows() {
		fillValue((*testing.T)(nil), reflect.ValueOf(r).Elem(), 1)
		stored, err := encodeRow(r)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(i, stored.body)
	}
	f.Fuzz(func(t *testing.T, i int, body []byte) {
		rows := allRows()
		key := rows[uint(i)%uint(len(rows))].Key()
		r, err := decodeRow(key, body)
		if err != nil {
			return
		}
		again, err := encodeRow(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeRow(key, again.body); err != nil {
			t.Errorf("the row was read, and written as %x: %v", again.body, err)
		}
	})
}

func BenchmarkEncodeRequest(b *testing.B) {
	i := newIssuance(b, 1)
	for b.Loop() {
		if _, err := encodeRow(&i.request); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkDecodeLease(b *testing.B) {
	i := newIssuance(b, 1)
	stored, err := encodeRow(&i.lease)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := decodeRow(stored.key, stored.body); err != nil {
			b.Fatal(err)
		}
	}
}

// encodeRow returns a row as it is stored.
func encodeRow(r broker.Row) (out row, err error) {
	err = out.encode(r, nil)
	return out, err
}
