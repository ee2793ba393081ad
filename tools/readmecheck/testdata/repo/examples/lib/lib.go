package lib

// Nobody is called by no program.
func Nobody() {
	println("nobody")
}
