package verify

import (
	"bytes"
	"testing"
)

// FuzzExport verifies arbitrary exports, which come from others. Reading one never
// panics, and what verifies with a key that the auditor has is what was signed, up to
// the last checkpoint.
func FuzzExport(f *testing.F) {
	var seed bytes.Buffer
	if err := Export(f.Context(), &seed, goodLog(f)); err != nil {
		f.Fatal(err)
	}
	leaves := func(t testing.TB, export []byte, most int64) (list [][]byte) {
		src, err := OpenExport(bytes.NewReader(export))
		if err != nil {
			t.Fatal(err)
		}
		for item, err := range src.Items(t.Context()) {
			if err != nil || int64(len(list)) == most {
				break
			}
			list = append(list, bytes.Clone(item.Leaf))
		}
		return list
	}
	src, err := OpenExport(bytes.NewReader(seed.Bytes()))
	if err != nil {
		f.Fatal(err)
	}
	header, err := src.Header(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	signed := leaves(f, seed.Bytes(), header.Size)
	if len(signed) == 0 {
		f.Fatal("the seed has no records")
	}
	f.Add(seed.Bytes())
	f.Add([]byte(`{"accessbroker_log":1,"origin":"a/log/aaaaaaaa","key":"x","size":0,"root":"","checkpoints":[]}` + "\n"))
	f.Add(bytes.ToUpper(seed.Bytes()))
	f.Fuzz(func(t *testing.T, export []byte) {
		src, err := OpenExport(bytes.NewReader(export))
		if err != nil {
			return
		}
		report, err := Verify(t.Context(), src, Options{Key: header.Key})
		if err != nil || !report.Verified {
			return
		}
		for i, leaf := range leaves(t, export, report.Signed) {
			if i >= len(signed) || !bytes.Equal(leaf, signed[i]) {
				t.Fatalf("record %d verifies and differs from the signed one", i)
			}
		}
	})
}

// FuzzApprovers reads arbitrary lists of passkeys. Each entry has one spelling.
func FuzzApprovers(f *testing.F) {
	f.Add("login/ana broker.acme.test AAAA AAAA\n# comment\n")
	f.Add("login/ana broker.acme.test AAB AAB=")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := ParseApprovers(text)
		if err != nil {
			return
		}
		for _, a := range list {
			again, err := ParseApprovers(a.String())
			if err != nil || len(again) != 1 || again[0].String() != a.String() {
				t.Fatalf("%q: %s is read again as %v, %v", text, a, again, err)
			}
		}
	})
}
