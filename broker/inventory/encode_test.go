package inventory

import (
	"encoding/json"
	"net/netip"
	"reflect"
	"testing"
	"time"
)

// Databases have such rows, so their JSON must not change.
func TestRowsKeepTheirJSON(t *testing.T) {
	at := time.UnixMilli(1_790_000_000_123).UTC()
	once, twice := Span{at, at, 1}, Span{at, at.Add(time.Second), 2}
	seen := &Seen{
		Kind: "agent", Records: twice, Methods: Names[Span]{{"jwt-svid", once}, {"x509-svid", once}}, Asked: once, Denied: once, Issued: twice,
		Days: Days{20717: 2, 20719: 1}, Votes: Names[Span]{{`a "b" <c>`, once}}, Places: Places{netip.MustParseAddr("::1"): 7, netip.MustParseAddr("192.0.2.1"): 5},
	}
	use := &Use{Usage: Usage{Asked: once, Issued: twice}, Days: Days{20717: 2}, Scopes: Names[Usage]{{"read", Usage{Asked: once}}, {"write", Usage{}}}, Policies: Names[Usage]{{"p", Usage{once, twice}}}}
	const one, two = `[1790000000123,1790000000123,1]`, `[1790000000123,1790000001123,2]`
	for _, test := range []struct {
		row, back any
		want      string
	}{
		{seen, &Seen{}, `{"kind":"agent","records":` + two + `,"methods":{"jwt-svid":` + one + `,"x509-svid":` + one + `},"asked":` + one + `,"denied":` + one + `,"issued":` + two +
			`,"days":"20717:2,,1","votes":{"a \"b\" <c>":` + one + `},"places":{"192.0.2.1":5,"::1":7}}`},
		{&Seen{}, &Seen{}, `{"kind":"","records":[-62135596800000,-62135596800000,0]}`},
		{use, &Use{}, `{"asked":` + one + `,"issued":` + two + `,"days":"20717:2","scopes":{"read":{"asked":` + one + `},"write":{}},"policies":{"p":{"asked":` + one + `,"issued":` + two + `}}}`},
		{&Use{}, &Use{}, `{}`},
	} {
		enc, err := json.Marshal(test.row)
		var got, want any
		if err != nil || json.Unmarshal(enc, &got) != nil || json.Unmarshal([]byte(test.want), &want) != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("got  %s (%v)\nwant %s", enc, err, test.want)
		}
		if err := json.Unmarshal(enc, test.back); err != nil || !reflect.DeepEqual(test.back, test.row) {
			t.Errorf("read back: got %+v, %v\nwant %+v", test.back, err, test.row)
		}
	}
}
