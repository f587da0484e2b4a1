package broker

import "testing"

// Every place of a list is taken once, in no visible order.
func TestStatusPlacesAreTakenOnce(t *testing.T) {
	t.Parallel()
	f := &filling{key: [statusRounds]uint64{1, 2, 3, 4}}
	taken := make([]bool, StatusListSize)
	neighbours, last := 0, uint32(0)
	for n := range StatusListSize {
		place := f.take()
		if place >= StatusListSize || taken[place] {
			t.Fatalf("place %d was taken twice, or is not in the list", place)
		}
		taken[place] = true
		if n > 0 && (place == last+1 || last == place+1) {
			neighbours++
		}
		last = place
	}
	if neighbours > 100 {
		t.Errorf("%d of %d places follow their neighbour", neighbours, StatusListSize)
	}
	if f.next != StatusListSize {
		t.Errorf("the next place is %d", f.next)
	}
	if f.takes(&Lease{}) {
		t.Error("a full list takes a token")
	}
}
